"""``edge-ad methods``."""

from __future__ import annotations

import click

from edge_ad.methods import METHODS


@click.command("methods")
@click.argument("method", required=False, metavar="[METHOD]", type=click.Choice(list(METHODS)))
def command(method: str | None) -> None:
    """List the methods, or the parameters of one.

    Parameters are given to train as -p KEY=VALUE, or by the option of that name where train has one, such as
    --backbone. Each is shown with its default, or as KEY=<type> where nothing is the default.
    """
    from edge_ad.methods import method_class
    from edge_ad.methods.described import described_parameters, summary

    formatter = click.HelpFormatter(width=120)
    if method is None:
        formatter.write_dl([(name, summary(method_class(name)).partition(": ")[2]) for name in METHODS])
    else:
        kind = method_class(method)
        formatter.write_text(summary(kind))
        formatter.write_paragraph()
        formatter.write_dl(described_parameters(kind), col_max=40)
    click.echo(formatter.getvalue(), nl=False)
