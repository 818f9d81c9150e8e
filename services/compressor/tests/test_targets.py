"""What each target has, and what it refuses."""

import pytest

from millrace_compressor.domain import Target
from millrace_compressor.jobs.format import Recipe
from millrace_compressor.targets import ROWS, narrowed, require_taken
from millrace_runtime.errors import InvalidArgument


def test_every_target_has_a_row_whose_fields_a_job_reads() -> None:
    assert set(ROWS) == set(Target)
    for row in ROWS.values():
        assert row.recipe <= set(Recipe.model_fields)


def test_what_a_target_does_not_have_is_named() -> None:
    require_taken(Target.OPENVINO_INT4, {"group_size": 64})
    with pytest.raises(InvalidArgument, match="openvino-int8 has no 'group_size'") as caught:
        require_taken(Target.OPENVINO_INT8, {"group_size": 64})
    assert caught.value.field == "recipe.group_size"


def test_of_a_deployments_recipe_each_target_takes_its_part() -> None:
    recipe = {"group_size": 64, "kv_cache_int8": True}
    assert narrowed(Target.OPENVINO_INT4, recipe) == recipe
    assert narrowed(Target.OPENVINO_INT8, recipe) == {"kv_cache_int8": True}
    assert narrowed(Target.SAFETENSORS, recipe) == {}
