"""`stage1 config`: what a run would do, and what can be set."""

import typer

from stage1.cli import options

app = typer.Typer(no_args_is_help=True, help="Show the resolved configuration, or its schema.")


@app.command()
def show(
    config: options.ConfigFile = None,
    recipe: options.Recipe = None,
    model: options.Model = None,
    revision: options.Revision = None,
    trust_remote_code: options.TrustRemoteCode = None,
    data: options.Data = None,
    compressor: options.CompressorNames = None,
    adapter: options.AdapterName = None,
    loss: options.LossNames = None,
    settings: options.Settings = None,
    json: options.Json = False,
) -> None:
    """Print the resolved configuration: every setting with its value, as YAML that `stage1 train` takes."""
    from stage1.files import to_json
    from stage1.plugins import fully_resolved, load_plugins, resolve

    flags = options.flags_given(
        loss,
        compressor,
        model__name=model,
        model__revision=revision,
        model__trust_remote_code=trust_remote_code,
        data__name=data,
        adapter__name=adapter,
    )
    chosen = options.configuration(config, flags, settings, recipe=recipe)
    whole = fully_resolved(chosen, resolve(chosen, load_plugins()))
    typer.echo(to_json(whole.model_dump(mode="json")) if json else whole.to_yaml(), nl=False)


@app.command()
def schema() -> None:
    """Print the JSON Schema of the configuration, with the options of the installed plugins."""
    from stage1.files import to_json
    from stage1.plugins import config_schema, load_plugins

    typer.echo(to_json(config_schema(load_plugins())), nl=False)
