import logging

import msgspec

from ovms_kernel.api.observers import Call, ModelRef, Outcome, PullPlan, Refused, hookimpl

log = logging.getLogger(__name__)


class DiarySettings(msgspec.Struct, frozen=True):
    limit: int = 10_000_000_000
    """The largest model that may be pulled, in bytes."""


class Diary:
    settings_type = DiarySettings

    def __init__(self, settings: DiarySettings) -> None:
        self.limit = settings.limit

    @hookimpl
    def ovms_before_pull(self, model: ModelRef, plan: PullPlan) -> None:
        if plan.total > self.limit:
            raise Refused(f"{model.id} is larger than observers.diary.limit; choose a smaller model.")

    @hookimpl
    async def ovms_request_finished(self, call: Call, outcome: Outcome) -> None:
        log.info("%s: %d after %.2f s", call.service, outcome.code, outcome.seconds)
