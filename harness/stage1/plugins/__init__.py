"""Plugins: found, isolated from one another, named, and their options checked."""

from stage1.plugins.discovery import discover as discover
from stage1.plugins.discovery import load_plugins as load_plugins
from stage1.plugins.registry import Kind as Kind
from stage1.plugins.registry import Owner as Owner
from stage1.plugins.registry import PluginRecord as PluginRecord
from stage1.plugins.registry import Registry as Registry
from stage1.plugins.registry import source_sha256 as source_sha256
from stage1.plugins.resolution import Resolved as Resolved
from stage1.plugins.resolution import ResolvedComponent as ResolvedComponent
from stage1.plugins.resolution import ResolvedLoss as ResolvedLoss
from stage1.plugins.resolution import dump_options as dump_options
from stage1.plugins.resolution import fully_resolved as fully_resolved
from stage1.plugins.resolution import magnitude_clash as magnitude_clash
from stage1.plugins.resolution import resolve as resolve
from stage1.plugins.schema import Option as Option
from stage1.plugins.schema import config_schema as config_schema
from stage1.plugins.schema import docs as docs
