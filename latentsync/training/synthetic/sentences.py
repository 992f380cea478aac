"""Sentences by seed: plain words of each language strung together, and words that don't exist.

They need not make sense; they must bring every sound of a language, in every neighbourhood.
"""

# ruff: noqa: RUF001 (Turkish has a letter that looks like another)

import numpy as np

__all__ = ["draw_sentence"]

_WORDS = {
    "en": (
        "about above after again all always and apple are around ask away baby back bath "
        "beautiful because before begin big bird blue boat book both bread bring brother bumpy "
        "but buy by call came can chair change child choose clean cloud coffee cold come could "
        "cup dance day deep do door down dream each early earth easy eight enough even every "
        "eye face fall family far father feel few fifty find fire first fish five floor flower "
        "follow food for found four friend from full garden gather give go good great green "
        "group grow half hand happy have he hear heart heavy help her here high home hope house "
        "how huge hundred if important in joy judge jump keep kind kitchen know lamp language "
        "large laugh learn leave letter life light listen little live long look lose loud love "
        "machine make many map maybe me measure meet milk mind money moon more morning mother "
        "mountain mouth move music my name near never new nice night no noise nothing now ocean "
        "of often oh old on once one open orange our over own paper part people perhaps picture "
        "place play please pleasure possible power problem promise pull purple push put quick "
        "quiet quite rain read ready remember rice right river road room round run same say "
        "school sea see seven shape she ship shoe short should show simple sing sister sky "
        "sleep slow small smile smooth so some song soon sound south speak spring star start "
        "stay still stone story strange street strong sugar summer sun sure table take talk "
        "teach tell ten than that the them then there they thing think this thought thousand "
        "three through throw time to today together tomorrow too town travel tree true try "
        "twelve two umbrella under until up us use usual valley very village visit voice wait "
        "walk wall want warm was watch water way we weather week well went were what wheel when "
        "where which while white who why wide will wind window winter wish with woman wonder "
        "wood word work world would write year yellow yes yet you young"
    ),
    "de": (
        "aber abend alle antwort apfel auch auf auge baum bei berg bitte blau bleiben brot "
        "bruder buch butter danke der die das dorf drei dunkel du eins ende erde fahren farbe "
        "feuer fisch frau freund früh fünf fuß garten geben gehen gelb geschichte glück groß "
        "gut haben hand haus herz heute himmel hoch hören hund ich immer jahr jetzt jung kaffee "
        "kind kirche klein kommen können küche lachen lang leben leicht licht lieb löffel luft "
        "machen mann meer mehr mein milch mit morgen müde musik mutter nacht name neu nicht "
        "noch oben oder öffnen papier pferd platz regen rot ruhig sagen schiff schlafen schnell "
        "schön schule sehen sehr sieben singen sohn sommer sonne spielen sprechen stadt stein "
        "stimme straße stuhl tag tausend tisch tür über und viel vielleicht vogel wald warm "
        "warum wasser weg weiß welt wenn wetter wichtig wie wind winter wo woche wohnen wolke "
        "wort zeit zimmer zusammen zwei"
    ),
    "fr": (
        "aimer ami an après arbre au aujourd'hui aussi avec beau beaucoup bien blanc bleu boire "
        "bon bonjour bras chaise chambre chanter chat chaud cheval chez chien ciel cinq coeur "
        "comme comment couleur dans demain deux dire doux eau école écouter elle enfant entre "
        "est été étoile faire famille femme fenêtre feu fille fleur forêt frère froid fromage "
        "gauche grand gris haut heure heureux hier hiver homme ici image jamais jardin jaune je "
        "jeune joie jour lait lampe le lettre lire livre loin long lune main maintenant maison "
        "manger matin mer mère merci mieux moi monde montagne mot musique neige neuf noir nom "
        "nous nuit oiseau on ouvrir pain papier par parler peu petit peut-être pied place pluie "
        "plus pomme pont porte pour premier près printemps quand quatre question rien rire "
        "rivière rouge rue sept seul soir soleil son sous souvent sucre table temps terre tête "
        "toujours tous train travail très trois trouver tu un vague vent vert viande vie vieux "
        "ville vin vivre voir voix vouloir vous"
    ),
    "es": (
        "abrir agua ahora aire algo alto amarillo amigo amor año aquí árbol arriba azul bajo "
        "barco bien blanco boca bueno caballo café calle cama camino campo cantar casa cerca "
        "ciudad claro comer cómo corazón correr cosa cuatro dar decir dedo desde día diez "
        "dinero dos dulce ella en escuela escuchar esperar estrella fácil familia feliz flor "
        "fruta fuego gato gente grande gris hablar hacer hasta hermano hijo hoja hombre hora "
        "hoy huevo invierno jardín joven jugar leche leer lejos libro limpio llave lluvia luna "
        "luz madre mañana mano mar mejor mesa mirar montaña mucho mujer mundo música nada negro "
        "niño noche nombre nosotros nube nueve nunca ocho ojo otro padre pájaro palabra pan "
        "papel pequeño perro piedra playa poco por porque pregunta primero puerta pueblo queso "
        "querer quién rápido reloj río rojo ropa saber seis semana señor siempre siete silla "
        "sol sombrero sueño también tarde tiempo tierra todo trabajo tren tres uva vaca vamos "
        "ventana verano verde viajar vida viejo viento vivir voz yo zapato"
    ),
    "it": (
        "acqua adesso albero alto amico amore anche andare anno aprire aria bambino bello bene "
        "bere bianco bocca buono caffè caldo cane cantare capello casa cavallo cercare chi "
        "chiave cielo cinque città come cosa cuore dare dentro dieci dire dolce domani donna "
        "dormire dove due ecco estate famiglia fare felice festa figlio finestra fiore fiume "
        "forse freddo fuoco gatto gente giallo giardino giorno giovane grande guardare ieri "
        "insieme inverno isola lago latte lavoro leggere lettera libro luce luna lungo madre "
        "mai mangiare mano mare mattina mela meno mese mondo montagna molto musica nave neve "
        "noi nome notte nove nuovo occhio oggi ogni ora otto padre pane parlare parola pesce "
        "piccolo piede pioggia poco ponte porta prima primavera quando quattro qui ragazzo "
        "ridere rosso scuola sedia sempre sera sette sole sopra spiaggia stella strada sapere "
        "tavola tempo terra tre treno tutto uccello uomo uovo vedere vento verde vero viaggio "
        "vicino vino vita voce zucchero"
    ),
    "pt": (
        "abrir água agora alegre algum alto amanhã amarelo amigo amor ano aqui árvore azul "
        "baixo barco bem boa boca bom branco café calor caminho campo cantar casa cavalo cedo "
        "céu chuva cidade cinco coisa comer coração correr dar dedo dentro devagar dez dia "
        "dizer dois dormir ela encontrar escola escrever escutar estrela falar família feliz "
        "festa filho flor fogo folha frio fruta gato gente grande hoje homem hora ilha inverno "
        "irmão janela jardim jovem lago leite ler livro longe lua luz mãe maçã mão mar melhor "
        "menino mesa montanha muito mulher mundo música nada não noite nome nós nove novo nunca "
        "olho oito onde ontem outro ouvir pai palavra pão papel pássaro pé pedra peixe pequeno "
        "perto pessoa ponte porta praia quando quatro queijo rápido rio rir roupa rua saber "
        "seis sempre sete sim sol sonho tarde tempo terra todo trabalho três trem um uva velho "
        "vento ver verão verde vermelho viagem vida voz"
    ),
    "pl": (
        "ale biały brat być cały chleb chmura ciepły co czarny czas czerwony cztery dać dobry "
        "dom droga drzewo duży dwa dzień dziecko dziesięć gdzie góra gwiazda herbata jabłko jak "
        "jeden jesień jutro kawa kiedy kolor koń kot krzesło książka kto kwiat las lato list "
        "ludzie łódka mama miasto mleko mały morze most mówić może muzyka my nadzieja niebo "
        "nigdy noc nowy oko okno osiem ogród pies pięć pisać piękny pociąg pole praca prosić "
        "przyjaciel ptak pytanie ręka rok rzeka ryba sen serce siedem siostra słońce słowo spać "
        "stary stół szkoła szybko śnieg śpiewać świat tak tata teraz trawa trzy ulica usta "
        "wiatr wiedzieć wieczór wiosna woda wolny zawsze zielony zima żółty życie"
    ),
    "nl": (
        "aarde al altijd appel avond bal berg beter blauw bloem boek boom boot bos brood broer "
        "brug buiten dag dak dan denken deur dochter donker door dorp drie droom duizend eerst "
        "eten fiets gaan geel geluk geven goed groen groot hand hart heel helpen hemel hier hoe "
        "hond hoofd huis ik jaar jong kaas kamer kat kind kijken klein koffie komen koud kunnen "
        "lachen land lang leren leven licht lief lopen lucht maan maar maken man meer melk mens "
        "misschien mooi morgen moeder muziek naam nacht nieuw nooit nu ogen om onder oud paard "
        "papier plaats praten regen rivier rood rustig samen school schip slapen snel spelen "
        "spreken stad steen stem ster straat suiker tafel tijd trein tuin twee uur vader veel "
        "vijf vinger vis vliegen vogel voor vriend vrouw vuur waar wachten wandelen warm water "
        "weg wereld werk wind winter wolk woord zee zeven zien zingen zitten zoet zomer zon "
        "zuster zwart"
    ),
    "sv": (
        "alltid år äpple arbete barn berg bil blå blomma bok bord bra bro bröd bror by båt "
        "cykel dag djup dotter dröm dörr eld ett fader fågel familj färg fem fin fisk flicka "
        "fot fråga fri fyra fönster ge glad god gräs grön gul gå göra han hand hav hem himmel "
        "hjärta hjälpa hund hus hår hög höra i idag is jag jord kaffe kall katt kind kniv komma "
        "kung kvinna kyrka kärlek lampa land leka ljus lång läsa löv man mat med mjölk moder "
        "morgon musik måne många namn natt ner ny nära ny och ofta ord oss papper pojke regn "
        "rida ro rum röd röst sak sand se sedan sex sju själ sjunga sjö skepp skog skola sky "
        "sköld snö sol sommar sova språk stad sten stjärna stor sväva syster säga söt tack tala "
        "tid tio torn träd tre tung två tyst under ut vacker vatten vi vind vinter vit väg vän "
        "värld år åtta öga öppen över"
    ),
    "fi": (
        "aamu aika aina aurinko auto elämä että hauska hetki hiljaa huone huomenna hyvä ihminen "
        "ilma ilo iso isä jalka joki joulu juna juosta jää kaksi kala kaunis kaupunki kesä "
        "kevät kieli kirja kissa kiitos koira kolme koti koulu kukka kuu kuva kylmä kynä kysyä "
        "käsi laiva lapsi laulaa lehti leipä lintu lumi lämmin maa maito matka meri metsä mies "
        "minä mitä musiikki mutta mäki nainen neljä niin nimi nopea nukkua nuori nyt näin ovi "
        "paikka pallo pieni pilvi poika punainen puu pyörä päivä ranta sade saari sana sano se "
        "seitsemän sininen sisko sydän syksy syödä taivas talo talvi tammi tie tuli tuoli tuuli "
        "tyttö työ tähti uida uni uusi vanha vesi vihreä viisi vuori vuosi yksi ystävä yö äiti "
        "ääni"
    ),
    "tr": (
        "açık ada adam ağaç akşam altı anne araba arkadaş ateş ay ayak az baba bahar bahçe "
        "balık bardak baş beş beyaz bilmek bin bir biz bugün bulut bulmak büyük cam can çay "
        "çiçek çocuk dağ defter deniz dere dil doğru dost dört dün dünya düş ekmek el elma ev "
        "evet gece gel gemi genç gitmek göl gök gönül göz güneş gün güzel hava hayat her ışık "
        "iki iyi kalp kalem kapı kar kardeş kara kedi kırmızı kış kitap kız köpek köprü köy kuş "
        "küçük lamba limon mavi masa meyve müzik ne neden okul on orman oyun para pazar pencere "
        "renk rüya rüzgar saat sabah sarı ses sevgi sıcak soğuk sokak soru söz su süt şarkı "
        "şehir şeker tarih taş tatlı top toprak tren tuz uçak uzun üç üzüm var ve vakit yağmur "
        "yaz yedi yeşil yıl yıldız yol yumurta yüz zaman"
    ),
    "id": (
        "ada air akan aku anak angin api apa awan ayah ayam baca bahasa baik baju bapak baru "
        "batu bawah belajar benar berapa besar biru bisa buah buka bukit buku bulan bunga "
        "burung cahaya cepat cerita cinta daun dan dapur datang dekat delapan dengan desa di "
        "dia dua dunia empat enam gambar gula gunung guru hari harum hati hidup hijau hujan "
        "hutan ibu ikan indah ini itu jalan jam jauh jendela kaki kami kapal kapan kata kecil "
        "kelas kereta keras kita kopi kota kucing kuda kuning lagu laki lampu langit laut lima "
        "lihat mahal main makan malam mana manis mata matahari mawar meja merah minum muda "
        "mudah musik nama nanti nasi negeri nenek orang pagi panas panjang pantai pasar pelan "
        "pergi perahu pintu pohon pulang putih rumah rumput sahabat sama satu sayang sawah "
        "sedih sekolah selalu semua senang sepuluh siang suara sudah sungai surat susu tahu "
        "tanah tangan teman tempat tidur tiga tinggi tua tujuh ubi ular untuk waktu warna yang"
    ),
}
_LISTS = {language: tuple(words.split()) for language, words in _WORDS.items()}
_ONSETS, _VOWELS, _CODAS = (
    tuple(sounds.split())
    for sounds in (
        "b p m f v w r l s z sh ch t d n k g h j br pl st tr gr fl sm kl sp",
        "a e i o u ai ou ee oo au ei oa",
        "m n l r s t k p f ng b d",
    )
)


def _pseudo_word(rng: np.random.Generator) -> str:
    def pick(sounds: tuple[str, ...]) -> str:
        return sounds[rng.integers(len(sounds))]

    syllables = [pick(_ONSETS) + pick(_VOWELS) for _ in range(rng.integers(1, 4))]
    return "".join(syllables) + (pick(_CODAS) if rng.random() < 0.4 else "")


def draw_sentence(rng: np.random.Generator, language: str, real_share: float = 0.65) -> str:
    """4 to 11 words, `real_share` of them real ones of `language` ("en-gb", "de", ...).

    A language without a list of its own speaks words that don't exist, in its own accent.
    """
    words = _LISTS.get(language.split("-")[0], ())
    sentence: list[str] = []
    for _ in range(rng.integers(4, 12)):
        real = len(words) > 0 and rng.random() < real_share
        word = words[rng.integers(len(words))] if real else _pseudo_word(rng)
        sentence.append(word + ("," if rng.random() < 0.12 else ""))
    return " ".join(sentence).rstrip(",") + ("?" if rng.random() < 0.15 else ".")
