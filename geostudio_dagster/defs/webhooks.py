"""What tells the webhooks of requests: a sensor, so that no run is started for a message."""

# No `from __future__ import annotations`: Dagster reads these signatures as they are.

import dagster as dg

from geostudio_dagster.defs.resources import InstallationResource
from geostudio_dagster.pipeline.stage import now
from geostudio_dagster.webhooks import deliver_due

TICK_S = 5
MESSAGES_A_TICK = 20  # ten at a time, fifteen seconds each at most: a tick may take a minute


@dg.sensor(
    name="webhook_deliveries",
    minimum_interval_seconds=TICK_S,
    default_status=dg.DefaultSensorStatus.RUNNING,
    description="Tells the webhooks of requests what became of them, again where one failed.",
)
def webhook_deliveries(
    context: dg.SensorEvaluationContext, installation: InstallationResource
) -> dg.SkipReason:
    """Send what is due."""
    notes = deliver_due(installation.get(), now(), MESSAGES_A_TICK)
    for note in notes:
        context.log.info(note)
    return dg.SkipReason(f"{len(notes)} messages were due")
