"""The options that every verb has."""

import click

json_option = click.option("--json", "as_json", is_flag=True, help="One JSON document on stdout, no tables.")
traceback_option = click.option(
    "--traceback",
    is_flag=True,
    expose_value=False,
    help="Show where an error came from.",  # read by main
)
