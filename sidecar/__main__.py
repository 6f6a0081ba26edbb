"""The `rankguard` command."""


def main() -> None:
    """Run the command line. Ctrl-C during the imports is no traceback either."""
    try:
        from sidecar.cli import main as run

        run()
    except KeyboardInterrupt:
        raise SystemExit(130) from None


if __name__ == "__main__":
    main()
