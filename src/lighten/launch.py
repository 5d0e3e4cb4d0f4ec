"""What a copy of an older ``train.py`` imports; it says what to change there."""

raise SystemExit(
    "error: this train.py imports lighten.launch, which is gone; replace its last lines by those of the present one: "
    '`from lighten.cli.main import main` and `sys.exit(main(["train", *sys.argv[1:]]))`'
)
