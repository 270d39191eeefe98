"""`python -m trainwell`."""

from trainwell.cli.app import main

if __name__ == "__main__":
    main()
