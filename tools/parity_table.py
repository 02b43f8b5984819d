"""Print how far the network is from the released code's results, as a Markdown table.

    python tools/parity_table.py ../shared/reference

The folder holds the reference model and its results. One row per quantity, the worst of all cases; the exit
code is 1 where an error exceeds its tolerance.
"""

import sys
from pathlib import Path

import click

from s3diff_training.parity import compare_with_reference, reference_network, worst_of_each


@click.command(help=__doc__)
@click.argument("reference", type=click.Path(exists=True, file_okay=False, path_type=Path))
def main(reference: Path) -> None:
    """Compare on all cases of the folder and print the table."""
    deviations = compare_with_reference(reference_network(reference), reference)
    click.echo("| quantity | max absolute error | max relative error | tolerance (relative) | worst case |")
    click.echo("| --- | ---: | ---: | ---: | --- |")
    for worst in worst_of_each(deviations):
        absolute = max(one.absolute for one in deviations if one.quantity == worst.quantity)
        numbers = f"{absolute:.1e} | {worst.relative:.1e} | {worst.tolerance:.0e}"
        click.echo(f"| {worst.quantity} | {numbers} | {worst.case} |")
    sys.exit(0 if all(deviations) else 1)


if __name__ == "__main__":
    main()
