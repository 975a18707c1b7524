"""What shows new processors without a restart: their location is loaded anew when they change."""

# No `from __future__ import annotations`: Dagster reads these signatures as they are.

import dagster as dg

from geostudio_dagster.defs.resources import InstallationResource
from geostudio_dagster.errors import Unavailable
from geostudio_dagster.processor_reloading import reload_if_changed

TICK_S = 5


@dg.sensor(
    name="processor_watcher",
    minimum_interval_seconds=TICK_S,
    default_status=dg.DefaultSensorStatus.RUNNING,
    description="Loads the processors' location anew when a processor came, changed or went.",
)
def processor_watcher(
    context: dg.SensorEvaluationContext, installation: InstallationResource
) -> dg.SkipReason:
    """Compare the catalog with what was loaded last."""
    try:
        return dg.SkipReason(reload_if_changed(installation.get()))
    except Unavailable as error:
        # It reads the catalog when it starts; until then there is nobody to show anything to.
        return dg.SkipReason(str(error))
