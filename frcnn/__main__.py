"""`python -m frcnn`: the command line."""

from frcnn.cli import main

raise SystemExit(main())
