"""What a copy of an older ``train.py`` imports; it says what to change there."""

raise SystemExit(
    "error: lighten.launch is gone: in this train.py, import main from lighten.cli.main instead, and end with "
    'sys.exit(main(sys.argv[1:], recipes=Path(__file__).parent / "recipes", default="train"))'
)
