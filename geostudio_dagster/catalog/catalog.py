"""The whole catalog behind one name."""

from __future__ import annotations

from geostudio_dagster.catalog.accounts import Accounts
from geostudio_dagster.catalog.artifacts import Artifacts
from geostudio_dagster.catalog.cards import Cards
from geostudio_dagster.catalog.claims import Claims
from geostudio_dagster.catalog.deliveries import Deliveries
from geostudio_dagster.catalog.dispatch import Dispatch
from geostudio_dagster.catalog.gauges import Gauges
from geostudio_dagster.catalog.groups import Groups
from geostudio_dagster.catalog.heartbeats import Heartbeats
from geostudio_dagster.catalog.leavings import Leavings
from geostudio_dagster.catalog.listing import RequestListing
from geostudio_dagster.catalog.notifications import Notifications
from geostudio_dagster.catalog.onboarding import Onboardings
from geostudio_dagster.catalog.processors import Processors
from geostudio_dagster.catalog.publishing import Publishing
from geostudio_dagster.catalog.registry import Registry
from geostudio_dagster.catalog.reopening import Reopenings
from geostudio_dagster.catalog.requests import Requests
from geostudio_dagster.catalog.shares import Shares
from geostudio_dagster.catalog.sources import Sources
from geostudio_dagster.catalog.stopping import Stopping
from geostudio_dagster.catalog.tasks import Tasks
from geostudio_dagster.catalog.tunes import Tunes


class Catalog(
    Registry,
    Cards,
    Tunes,
    Onboardings,
    Sources,
    Processors,
    Requests,
    RequestListing,
    Dispatch,
    Claims,
    Heartbeats,
    Reopenings,
    Publishing,
    Stopping,
    Tasks,
    Artifacts,
    Accounts,
    Groups,
    Shares,
    Notifications,
    Deliveries,
    Gauges,
    Leavings,
):
    """Requests, tasks and what became of them, in SQLite or PostgreSQL.

    In the order of a request's life: :class:`Registry` (its model, which users see by its card,
    see :class:`Cards`, and upload as a tune, see :class:`Tunes` and :class:`Onboardings`),
    :class:`Requests` (written and planned), :class:`RequestListing` (found by who may see it),
    :class:`Dispatch` (its shards go to runs), :class:`Claims` (a run works the steps),
    :class:`Publishing` (layers), with :class:`Stopping` (cancel, retry) and
    :class:`Reopenings` at any time; :class:`Tasks` and :class:`Artifacts` tell how it stands;
    :class:`Accounts` and :class:`Groups` are the people who ask, :class:`Notifications` and
    :class:`Deliveries` what is said to them; :class:`Gauges` count, :class:`Leavings` go.
    """
