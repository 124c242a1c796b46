"""What a command imports that looks into a kernel or changes what it is made of: models, passports, engine versions."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ovms_kernel.errors import *
from ovms_kernel.on_demand import on_demand

if TYPE_CHECKING:
    from ovms_kernel.administration import check_host as check_host
    from ovms_kernel.administration import check_options as check_options
    from ovms_kernel.administration import check_profile as check_profile
    from ovms_kernel.administration import find_model as find_model
    from ovms_kernel.administration import forget_passport as forget_passport
    from ovms_kernel.administration import newest_engine as newest_engine
    from ovms_kernel.administration import passport_of as passport_of
    from ovms_kernel.administration import plan_pull as plan_pull
    from ovms_kernel.administration import report_engine as report_engine
    from ovms_kernel.administration import search_models as search_models
    from ovms_kernel.administration import skipped_platforms as skipped_platforms
    from ovms_kernel.administration import use_engine as use_engine
    from ovms_kernel.diagnosis import diagnose as diagnose
else:
    __getattr__ = on_demand(
        __name__,
        {
            "administration": (
                "check_host check_options check_profile find_model forget_passport newest_engine passport_of plan_pull "
                "report_engine search_models skipped_platforms use_engine"
            ),
            "diagnosis": "diagnose",
        },
    )
