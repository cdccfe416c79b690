"""`python -m calm_lightning` is `calm`."""

from calm_lightning.cli import main

if __name__ == "__main__":
    main()
