from latentsync.cli import main

main()
