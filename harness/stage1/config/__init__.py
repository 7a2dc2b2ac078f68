"""The configuration of a run. Imports no torch: `stage1 config show` and every usage error stay instant."""

from stage1.config.settings import NEARLY as NEARLY
from stage1.config.settings import SUFFICES as SUFFICES
from stage1.config.settings import ComponentChoice as ComponentChoice
from stage1.config.settings import DataConfig as DataConfig
from stage1.config.settings import EvalConfig as EvalConfig
from stage1.config.settings import FieldNames as FieldNames
from stage1.config.settings import LossChoice as LossChoice
from stage1.config.settings import ModelConfig as ModelConfig
from stage1.config.settings import Phase as Phase
from stage1.config.settings import PromptConfig as PromptConfig
from stage1.config.settings import RunConfig as RunConfig
from stage1.config.settings import TrainConfig as TrainConfig
from stage1.config.tree import DEFAULTS as DEFAULTS
from stage1.config.tree import flat as flat
from stage1.config.tree import format_setting as format_setting
from stage1.config.tree import merge as merge
from stage1.config.tree import overlay as overlay
from stage1.config.tree import parse_loss as parse_loss
from stage1.config.tree import parse_setting as parse_setting
from stage1.config.tree import read_yaml as read_yaml
from stage1.config.tree import settings_of as settings_of
from stage1.config.tree import validate as validate
from stage1.config.trust import granted as granted
from stage1.config.trust import require_trust as require_trust
from stage1.config.trust import untrusting as untrusting
