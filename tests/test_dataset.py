"""A folder of clips becomes training data: what is kept of each, and which are left out."""

import numpy as np
import pytest
import torch

from latentsync.audio.whisper import encode_speech
from latentsync.diffusion import sampling
from latentsync.errors import Cancelled, TrainingError
from latentsync.evaluation.nets import syncnet_mel
from latentsync.faces import align
from latentsync.faces.mask import keep_mask
from latentsync.media import AudioReader
from latentsync.training import dataset
from latentsync.training.batches import WHOLE, BatchPart, Prefetched
from latentsync.training.clip_cache import CachedClip, Preparer
from latentsync.training.crops import to_tensor
from latentsync.training.dataset import ClipWindows, prepare, window_and_reference
from tests.clips import babble
from tests.stubs import TINY, StubDetector, numbered_clip, tiny_nets
from tests.training_run import files_of, prepared_in

SIDE = TINY.resolution


def clip(path, frames=60, seconds=None, **options):
    sound = babble(frames / 25 if seconds is None else seconds, 48000)
    return numbered_clip(path, frames, sound=sound, **options)


@pytest.fixture(scope="module")
def nets():
    return tiny_nets()


@pytest.fixture
def make(tmp_path, nets):
    def preparer(faces=lambda _: True):
        return Preparer(nets, StubDetector(faces), tmp_path / "cache")

    return preparer


def clip_of(preparer, path):
    (file,) = files_of(path)
    return preparer.clip(file)


def test_what_is_prepared_is_what_a_run_would_hear_and_see(tmp_path, nets, make):
    path = clip(tmp_path / "a.mp4")
    found = clip_of(make(lambda number: number >= 5), path)
    assert (found.file.path, found.first, len(found)) == (path, 5, 55)
    crops = found.crops(10, 26, SIDE)
    assert crops.shape == (16, SIDE, SIDE, 3)
    again = found.crops(0, 55, SIDE)[10:26]
    assert np.array_equal(crops, again)  # a window is cut from its own frames
    kept = found.latents(10, 26)
    with torch.inference_mode():
        wanted = sampling.encode(nets.vae, to_tensor(crops), torch.from_numpy(keep_mask(SIDE)))
    torch.testing.assert_close(kept.reference, wanted.reference, atol=1e-3, rtol=1e-3)
    torch.testing.assert_close(kept.masked, wanted.masked, atol=1e-3, rtol=1e-3)
    heard = encode_speech(nets.speech, AudioReader(path), frames=60)[15:31]
    torch.testing.assert_close(found.speech(10, 26), heard, atol=1e-2, rtol=1e-2)
    wave = np.concatenate(list(AudioReader(path).chunks()))
    columns = syncnet_mel.sync_window(syncnet_mel.sync_mel(wave), 15).float()
    assert torch.equal(found.mel(10, 16), columns)
    assert found.mel(39, 16).shape == (1, 80, 52)  # the last window there is


def test_the_crops_of_wide_pixels_are_drawn_out(tmp_path, make):
    """The stub's points are in square pixels, each of the clip's is two of them wide."""
    found = clip_of(make(), clip(tmp_path / "a.mp4", x264opts="sar=2/1"))
    affine = np.load(found.folder / "affine.npy")[0]
    x, y = StubDetector.points[2]
    np.testing.assert_allclose(affine @ [x / 2, y, 1], align.template(SIDE)[2], atol=1)


def test_a_clip_is_prepared_once_whatever_its_name(tmp_path, make):
    path = clip(tmp_path / "a.mp4")
    first = clip_of(make(), path)
    path = path.rename(tmp_path / "b.mp4")
    later = make()
    second = clip_of(later, path)
    assert later.detector.seen == []
    assert (second.folder, second.file.path) == (first.folder, path)
    other = clip(tmp_path / "c.mp4", 61)
    assert clip_of(make(), other).folder != first.folder
    assert set(prepared_in(tmp_path / "cache")) == {first.folder, clip_of(make(), other).folder}
    assert list((tmp_path / "cache" / ".work").glob("*/*")) == []


def test_other_weights_make_another_cache(tmp_path, make):
    other = Preparer(tiny_nets(seed=1), StubDetector(), tmp_path / "cache")
    assert other.settings != make().settings


def test_the_longest_stretch_with_a_face_is_taken(tmp_path, make):
    found = clip_of(make(lambda number: number not in (3, 60)), clip(tmp_path / "a.mp4", 80))
    assert (found.first, len(found)) == (4, 56)


def test_the_sound_may_end_first(tmp_path, make):
    found = clip_of(make(), clip(tmp_path / "a.mp4", 70, seconds=2.0))
    assert len(found) in (50, 51)  # the coder fills its last block up
    assert found.mel(len(found) - 16, 16).shape == (1, 80, 52)


def test_short_clips_are_left_out_without_a_word(tmp_path, make):
    paths = [clip(tmp_path / "a.mp4", 47), clip(tmp_path / "b.mp4", 48)]
    files = files_of(*paths)
    assert [one.file.path.name for one in prepare(files, make())] == ["b.mp4"]
    with pytest.raises(TrainingError, match="none of 1 clips has 48 frames"):
        prepare(files[:1], make())
    with pytest.raises(TrainingError, match="none of 2 clips has 75 frames"):
        prepare(files, make(), frames=25)


def test_a_few_bad_clips_are_skipped_and_many_are_an_error(tmp_path, make, monkeypatch):
    good = clip(tmp_path / "good.mp4", 48)
    broken, silent, faceless = (tmp_path / f"{name}.mp4" for name in ("broken", "silent", "none"))
    broken.write_bytes(b"no clip at all")
    numbered_clip(silent, 48)
    clip(faceless, 49)  # other content than the good one
    blind = make(lambda _: False)
    told = []
    clips = prepare(files_of(*[good] * 19, broken), make(), told.append)
    assert len(clips) == 19
    assert all(isinstance(one, CachedClip) for one in clips)
    assert (told[-1].stage, told[-1].done, told[-1].total) == ("prepare", 20, 20)
    with pytest.raises(TrainingError, match=r"2 of 3 .* more than 5%: broken.mp4 .*silent.mp4"):
        prepare(files_of(good, broken, silent), make())
    assert "no face" in clip_of(blind, faceless)
    monkeypatch.setattr(dataset, "MAX_UNUSABLE_SHARE", 1.0)
    assert len(prepare(files_of(good, broken, silent), make())) == 1


def test_preparing_can_be_stopped(tmp_path, make):
    paths = [clip(tmp_path / f"{i}.mp4", 48 + i) for i in range(2)]
    with pytest.raises(Cancelled, match="after preparing 1 of 2 clips; they are kept"):
        prepare(files_of(*paths), make(), cancel=lambda: True)
    assert len(prepared_in(tmp_path / "cache")) == 1


def test_a_clip_that_was_cut_off_is_prepared_anew(tmp_path, make, monkeypatch):
    path = clip(tmp_path / "a.mp4", 48)
    with monkeypatch.context() as patch:
        patch.setattr(syncnet_mel, "sync_mel", lambda _: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            clip_of(make(), path)
    found = clip_of(make(), path)
    assert len(found) == 48
    assert prepared_in(tmp_path / "cache") == [found.folder]


# -- Windows ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("length", [48, 49, 63, 200])
def test_a_window_and_its_reference_have_no_common_frame(length):
    chances = np.linspace(0, 1 - 1e-9, 97)
    drawn = {window_and_reference(length, 16, a, b) for a in chances for b in chances}
    for start, other in drawn:
        assert 0 <= start <= length - 16
        assert 0 <= other <= length - 16
        assert abs(start - other) >= 16
    assert {0, length - 16} <= {start for start, _ in drawn}
    assert {0, length - 16} <= {other for _, other in drawn}


@pytest.fixture
def windows(tmp_path, make):
    paths = [clip(tmp_path / f"{i}.mp4", 48 + i) for i in range(2)]
    return ClipWindows(prepare(files_of(*paths), make()), pixels=SIDE)


def test_a_batch_is_a_function_of_its_generator(windows):
    first, again, other = (
        windows.draw(3, 16, torch.Generator().manual_seed(seed)) for seed in (1, 1, 2)
    )
    assert first.clean.shape == (3, 4, 16, 8, 8)
    assert first.shown.masked.shape == first.shown.reference.shape == (3, 16, 4, 8, 8)
    assert first.speech.shape == (3, 16, 20, 32)
    assert first.pixels.shape == (3, 3, 16, SIDE, SIDE)
    assert first.mel.shape == (3, 1, 80, 52)
    assert torch.equal(first.clean, again.clean)
    assert torch.equal(first.shown.reference, again.shown.reference)
    assert not torch.equal(first.clean, other.clean)


def test_a_batch_holds_what_belongs_together(windows, nets):
    batch = windows.draw(2, 16, torch.Generator().manual_seed(1))
    with torch.inference_mode():
        latents = nets.vae.encode(batch.pixels.transpose(1, 2).flatten(0, 1))
    clean = batch.clean.transpose(1, 2).flatten(0, 1)
    torch.testing.assert_close(clean, latents, atol=1e-3, rtol=1e-3)
    assert not torch.equal(batch.clean.transpose(1, 2), batch.shown.reference)


def test_crops_are_cut_in_full_precision_whatever_the_nets_compute_in(windows):
    wanted = windows.draw(1, 16, torch.Generator().manual_seed(1))
    with torch.autocast("cpu", torch.bfloat16):
        found = windows.draw(1, 16, torch.Generator().manual_seed(1))
    assert torch.equal(found.pixels, wanted.pixels)


def test_parts_of_a_batch_are_the_batch(windows):
    whole, *parts = (
        windows.draw(4, 16, torch.Generator().manual_seed(1), part)
        for part in (BatchPart(0, 1), BatchPart(0, 2), BatchPart(1, 2))
    )
    assert torch.equal(torch.cat([part.clean for part in parts]), whole.clean)
    assert torch.equal(torch.cat([part.mel for part in parts]), whole.mel)


def test_windows_drawn_ahead_are_those_that_would_be_drawn(windows):
    seeds, draw = [], windows.draw

    class Watched:
        def draw(self, count, frames, generator, part):
            seeds.append(generator.initial_seed())
            return draw(count, frames, generator, part)

    ahead = Prefetched(Watched())
    for seed in (5, 6, 7, 3):  # the last one out of turn
        for part in (BatchPart(0, 2), BatchPart(1, 2)):
            one, other = (torch.Generator().manual_seed(seed) for _ in range(2))
            found, wanted = ahead.draw(2, 16, one, part), draw(2, 16, other, part)
            assert torch.equal(found.clean, wanted.clean)
            assert torch.equal(found.pixels, wanted.pixels)
            assert torch.equal(torch.randn(3, generator=one), torch.randn(3, generator=other))
    ahead._thread.shutdown()
    assert seeds.count(6) == seeds.count(7) == seeds.count(8) == 2  # each once a part
    assert WHOLE.of(4) == slice(0, 4)
