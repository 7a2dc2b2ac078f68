"""`stage1 config`: what a run would do, and what can be set."""

import typer

from stage1.cli import groups, options

app = typer.Typer(no_args_is_help=True, help="Show the resolved configuration, or its schema.")


@app.command()
@groups.grouped
def show(chosen: options.SeededRunOptions, *, json: options.Json = False) -> None:
    """Print the resolved configuration: every setting with its value, as YAML that `stage1 train` takes."""
    from stage1.plugins import fully_resolved, load_plugins, resolve

    config = chosen.configuration()
    whole = fully_resolved(config, resolve(config, load_plugins()))
    if json:
        options.print_json(whole.model_dump(mode="json"))
    else:
        typer.echo(whole.to_yaml(), nl=False)


@app.command()
def schema() -> None:
    """Print the JSON Schema of the configuration, with the options of the installed plugins."""
    from stage1.plugins import config_schema, load_plugins

    options.print_json(config_schema(load_plugins()))
