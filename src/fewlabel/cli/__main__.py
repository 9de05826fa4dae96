"""`python -m fewlabel.cli`."""

from fewlabel.cli import main

main()
