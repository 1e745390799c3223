"""Entry point of `python -m trl_agentic`."""

from trl_agentic.cli import main


if __name__ == "__main__":
    main()
