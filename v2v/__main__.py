from v2v.cli import main

main()
