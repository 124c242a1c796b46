"""What goes for a model: a pure function, tried with whatever tables there may be."""

from itertools import combinations

from hypothesis import given, settings
from hypothesis import strategies as st

from ovms_kernel.models.plan import Budget, Decision, Resident, State, Wanted, plan

NOW = 1000.0
DEVICES = st.sampled_from(["CPU", "GPU"])
SIZES = st.integers(0, 100)

residents = st.builds(
    Resident,
    id=st.uuids().map(str),
    state=st.sampled_from(State),
    bytes=SIZES,
    device=DEVICES,
    users=st.sampled_from([0, 0, 0, 1, 3]),
    last_used=st.floats(0, NOW),
    load_seconds=st.floats(0, 5),
    pinned=st.sampled_from([False, False, False, True]),
    by_hand=st.sampled_from([False, False, False, False, True]),
    hinted=st.booleans(),
    closing=st.booleans(),
    foreign=st.sampled_from([False, False, False, False, True]),
)
tables = st.lists(residents, max_size=8).map(lambda found: {each.id: each for each in found})
wishes = st.builds(Wanted, st.just("wanted"), SIZES, DEVICES)
budgets = st.builds(
    Budget,
    st.dictionaries(DEVICES, st.integers(0, 300)),
    max_loaded=st.integers(0, 5),
    grace=st.sampled_from([0.0, 1.0]),
)


def loaded(table: dict[str, Resident]) -> list[Resident]:
    return [each for each in table.values() if each.state in (State.LOADED, State.LOADING) and not each.foreign]


def fits(staying: list[Resident], wanted: Wanted, budget: Budget) -> bool:
    used = sum(each.bytes for each in staying if each.device == wanted.device) + wanted.bytes
    within = wanted.device not in budget.memory or used <= budget.memory[wanted.device]
    return within and (not budget.max_loaded or len(staying) < budget.max_loaded)


@settings(max_examples=500)
@given(tables, wishes, budgets)
def test_a_decision_is_safe_sufficient_and_no_larger_than_needed(
    table: dict[str, Resident], wanted: Wanted, budget: Budget
) -> None:
    decision = plan(table, wanted, budget, NOW)
    there = loaded(table)
    for victim in map(table.get, decision.unload):
        assert victim is not None
        assert victim.state is State.LOADED
        assert victim.users == 0
        assert not victim.stays
        assert not victim.foreign
    for awaited in map(table.get, decision.wait_for):
        assert awaited is not None
        assert not awaited.stays
    going = {*decision.unload, *decision.wait_for}
    staying = [each for each in there if each.id not in going]
    if not decision.is_impossible:
        assert fits(staying, wanted, budget)
        for one in going:
            assert not fits([*staying, table[one]], wanted, budget), "one of them need not go"
    else:
        assert not going
        assert not fits([each for each in there if each.stays], wanted, budget)
    assert decision.is_ready == (not decision.wait_for and not decision.is_impossible)


@given(tables, wishes, budgets)
def test_nothing_in_use_is_waited_for_if_idle_models_suffice(
    table: dict[str, Resident], wanted: Wanted, budget: Budget
) -> None:
    decision = plan(table, wanted, budget, NOW)
    idle = [each for each in loaded(table) if each.state is State.LOADED and not each.stays]
    idle = [each for each in idle if not each.is_busy(NOW, budget.grace)]
    busy = [each for each in loaded(table) if each not in idle]
    assert bool(fits(busy, wanted, budget)) == decision.is_ready


@given(tables, wishes, budgets)
def test_among_models_of_one_size_hints_go_first_and_then_the_longest_unused(
    table: dict[str, Resident], wanted: Wanted, budget: Budget
) -> None:
    for each in table.values():
        each.bytes, each.device, each.users = 10, wanted.device, 0
    decision = plan(table, wanted, Budget(budget.memory, budget.max_loaded), NOW)
    movable = [each for each in loaded(table) if each.state is State.LOADED and not each.stays]
    for victim, kept in combinations(sorted(movable, key=lambda each: each.id not in decision.unload), 2):
        if victim.id in decision.unload and kept.id not in decision.unload:
            assert (not victim.hinted, victim.last_used) <= (not kept.hinted, kept.last_used)


def test_a_small_model_stays_if_a_large_one_has_to_go_anyway() -> None:
    table = {
        "small": Resident("small", state=State.LOADED, bytes=10, last_used=1),
        "large": Resident("large", state=State.LOADED, bytes=80, last_used=2),
    }
    assert plan(table, Wanted("new", 60), Budget({"CPU": 100}), NOW) == Decision(unload=("large",))


def test_a_model_between_two_requests_of_a_client_counts_as_in_use_for_as_long_as_its_load_took() -> None:
    warm = Resident("warm", state=State.LOADED, bytes=80, last_used=NOW - 0.2, load_seconds=0.3)
    table, wanted, budget = {"warm": warm}, Wanted("new", 60), Budget({"CPU": 100}, grace=1.0)
    assert plan(table, wanted, budget, NOW) == Decision(wait_for=("warm",))
    assert plan(table, wanted, budget, NOW + 0.2).unload == ("warm",)
    warm.hinted = True
    assert plan(table, wanted, budget, NOW).unload == ("warm",)


def test_a_forced_model_needs_no_room() -> None:
    table = {"a": Resident("a", state=State.LOADED, bytes=100)}
    assert plan(table, Wanted("new", 1000, forced=True), Budget({"CPU": 100}), NOW) == Decision()
