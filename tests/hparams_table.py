"""What TensorBoard's hparams plugin answers to its page about a folder of runs."""

from pathlib import Path
from typing import Any


def hparams_table(folder: Path, sort: str) -> tuple[Any, list[Any]]:
    """(the experiment: names, types, which differ; the runs, by falling `sort`), through the plugin's own handler."""
    from tensorboard import context as request_context
    from tensorboard.backend.event_processing import data_provider, plugin_event_multiplexer
    from tensorboard.plugins import base_plugin
    from tensorboard.plugins.hparams import api_pb2, backend_context, list_session_groups

    multiplexer = plugin_event_multiplexer.EventMultiplexer()
    multiplexer.AddRunsFromDirectory(str(folder))
    multiplexer.Reload()
    provider = data_provider.MultiplexerDataProvider(multiplexer, str(folder))
    context = backend_context.Context(base_plugin.TBContext(data_provider=provider))
    request = request_context.RequestContext()
    experiment = context.experiment_from_metadata(
        request, "", True, context.hparams_metadata(request, ""), context.hparams_from_data_provider(request, "", 0)
    )
    asked = api_pb2.ListSessionGroupsRequest(
        start_index=0,
        slice_size=100,
        allowed_statuses=[0, 1, 2, 3],
        col_params=[api_pb2.ColParams(hparam=sort, order=api_pb2.ORDER_DESC)],
    )
    return experiment, list(list_session_groups.Handler(request, context, "", asked).run().session_groups)
