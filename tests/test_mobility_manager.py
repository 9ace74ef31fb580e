"""Movement and radio cell: exit times, reflection at the border, uniform positions, and paths that nothing can disturb."""

import math
from decimal import Decimal, localcontext
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from mobility import mobility_manager
from mobility.mobility_manager import Cell, MobilityManager, RecordedMobility, reflected, time_to_exit_s
from settings import DeviceSettings, load_settings
from task import Device
from tests.helpers import default_settings
from utils import random_stream

RADIUS_M = 250.0
SIDE_M = 500.0
IMPROBABLE = 1e-4
"""Below this p a sample is taken for not uniform; the seeds are fixed, so a test that passes once passes always."""


def population(count=100, placement="cell", **kinds):
    """Device settings; `kinds` replaces the types: name → (share, speed range, chance of a turn)."""
    content = load_settings().devices.model_dump() | {"count": count, "placement": placement}
    if kinds:
        content["types"] = {
            name: {"share": share, "speed_mps": speed, "turn_probability": turn, "tasks_per_s": 1.0}
            for name, (share, speed, turn) in kinds.items()
        }
    return DeviceSettings.model_validate(content)


def vehicles(count, placement):
    return population(count, placement, vehicle=(1.0, (5, 15), 0.05))


def states_at(manager, time_s):
    """Positions and velocities of all devices at one time."""
    everyone = np.arange(manager.device_count)
    return manager.states(everyone, np.full(len(everyone), float(time_s)))


# Time to exit


def exact_time_to_exit_s(x, y, vx, vy, radius):
    """The positive root with 400 digits, from the same binary inputs."""
    with localcontext(prec=400):
        x, y, vx, vy, radius = map(Decimal, (x, y, vx, vy, radius))
        a, b, c = vx * vx + vy * vy, x * vx + y * vy, x * x + y * y - radius * radius
        return float(((b * b - a * c).sqrt() - b) / a)


@pytest.mark.parametrize(
    ("x", "y", "vx", "vy", "expected"),
    [
        (0, 0, 10, 0, 25.0),  # from the centre: R / v
        (0, 0, 0, -2.5, 100.0),
        (150, 0, 10, 0, 10.0),  # outward: (R - r) / v
        (150, 0, -10, 0, 40.0),  # inward, through the centre: (R + r) / v
        (150, 0, 0, 10, 20.0),  # across: sqrt(R^2 - r^2) / v, the triangle 150-200-250
        (0, 0, 0, 0, math.inf),
        (250, 0, 0, 0, math.inf),  # at rest on the border: still inside
        (250, 0, 10, 0, 0.0),  # on the border, outward
        (250, 0, -10, 0, 50.0),  # on the border, inward: across the whole disc
        (250, 0, 0, 10, 0.0),  # on the border, along the tangent
        (150, 200, 4, -3, 0.0),
        (150, 200, -3, -4, 100.0),
        (250.001, 0, -10, 0, 0.0),  # outside, even when it comes in
        (300, 400, 0, 0, 0.0),
        (math.nextafter(250, math.inf), 0, -1, 0, 0.0),
    ],
)
def test_time_to_exit_by_hand(x, y, vx, vy, expected):
    assert time_to_exit_s(x, y, vx, vy, RADIUS_M) == pytest.approx(expected, rel=1e-15)


@pytest.mark.parametrize("speed_mps", [1e-100, 1e-9, 1.0, 3e8, 1e100])
@pytest.mark.parametrize(("x", "heading"), [(0.0, 1.0), (150.0, 1.0), (150.0, -1.0), (249.0, 1.0), (249.0, -1.0)])
def test_very_slow_and_very_fast_devices_leave_as_precisely(speed_mps, x, heading):
    distance = RADIUS_M - heading * x
    assert time_to_exit_s(x, 0.0, heading * speed_mps, 0.0, RADIUS_M) == pytest.approx(distance / speed_mps, rel=1e-14)


@pytest.mark.parametrize(
    ("x", "y", "vx", "vy"),
    [
        (250 - 2.0**-16, 0.0, 15.0, 0.0),  # about to leave: (sqrt(b^2 - ac) - b)/a would keep 8 digits only
        (250 - 2.0**-16, 0.0, 15.0, 1e-6),
        (0.0, -249.5, 1e-8, -1.0),
        (250 - 2.0**-16, 0.0, -15.0, 0.0),
        (250 - 2.0**-16, 0.0, 0.0, 15.0),  # nearly on the border, along the tangent
        (250 - 2.0**-16, 0.0, -1e-9, 15.0),
        (150.0, 199.75, 3e-5, 4e-5),
        (1e-300, 0.0, 1.0, 0.0),
        (-125.0, 62.5, 1e-90, 3e-90),
    ],
)
def test_hard_cases_agree_with_400_digits(x, y, vx, vy):
    expected = exact_time_to_exit_s(x, y, vx, vy, RADIUS_M)
    assert time_to_exit_s(x, y, vx, vy, RADIUS_M) == pytest.approx(expected, rel=1e-13)


ANGLES = st.floats(0, 2 * math.pi)
SPEEDS = st.floats(-6, 6).map(lambda exponent: 10.0**exponent)


@given(st.floats(0, 1), ANGLES, SPEEDS, ANGLES, st.floats(1, 1e5))
def test_moved_for_the_exit_time_a_device_is_on_the_circle_and_was_inside_before(r, at, speed, heading, radius):
    x, y = r * radius * math.cos(at), r * radius * math.sin(at)
    vx, vy = speed * math.cos(heading), speed * math.sin(heading)
    exit_s = time_to_exit_s(x, y, vx, vy, radius)
    if x * x + y * y > radius * radius:  # rounding put the point on the border outside
        assert exit_s == 0
        return
    assert math.hypot(x + vx * exit_s, y + vy * exit_s) == pytest.approx(radius, rel=1e-9)
    assert 0 <= exit_s <= 2 * radius / speed * (1 + 1e-9)
    for part in (0.25, 0.5, 0.75):
        assert math.hypot(x + vx * exit_s * part, y + vy * exit_s * part) <= radius * (1 + 1e-9)


@given(st.floats(0, 0.999), ANGLES, SPEEDS, ANGLES)
def test_exit_time_agrees_with_400_digits(r, at, speed, heading):
    x, y = r * RADIUS_M * math.cos(at), r * RADIUS_M * math.sin(at)
    vx, vy = speed * math.cos(heading), speed * math.sin(heading)
    assert time_to_exit_s(x, y, vx, vy, RADIUS_M) == pytest.approx(exact_time_to_exit_s(x, y, vx, vy, RADIUS_M), rel=1e-11)


def test_cell_lies_at_the_centre_of_the_area():
    cell = Cell(SIDE_M, RADIUS_M)
    inside = [(250, 250), (0, 250), (500, 250), (250, 500), (100, 450)]
    outside = [(0, 0), (500, 500), (99, 450), (100, 451)]
    assert all(cell.contains(float(x), float(y)) for x, y in inside)
    assert not any(cell.contains(float(x), float(y)) for x, y in outside)
    both = np.array(inside + outside, dtype=float).T
    assert cell.covers(*both).tolist() == [cell.contains(x, y) for x, y in both.T.tolist()]
    assert cell.time_to_exit_s(Device(0, "vehicle", 400, 250, -10, 0, True)) == pytest.approx(40)
    assert cell.time_to_exit_s(Device(0, "vehicle", 0, 0, 10, 10, False)) == 0


# Reflection


@given(st.integers(1, 50), st.data(), st.sampled_from([-1, 1]), st.integers(0, 400))
def test_reflection_is_where_a_walk_by_small_steps_ends(side, data, direction, steps):
    at = data.draw(st.integers(0, side))
    walker, heading = at, direction
    for _ in range(steps):
        walker += heading
        if not 0 <= walker <= side:
            walker = -walker if walker < 0 else 2 * side - walker
            heading = -heading
    position, velocity = reflected(np.array([at + float(direction) * steps]), np.array([float(direction)]), float(side))
    assert position[0] == walker
    if 0 < walker < side:  # at a wall itself, before or after turning round is the same path
        assert velocity[0] == heading


@given(st.floats(-1e6, 1e6), st.floats(-100, 100), st.floats(0.1, 1e4))
def test_reflected_position_is_inside_and_reflecting_it_again_changes_nothing(at, speed, side):
    once, turned = reflected(np.array([at]), np.array([speed]), side)
    assert 0 <= once[0] <= side
    assert abs(turned[0]) == abs(speed)
    twice, again = reflected(once, turned, side)
    assert twice[0] == once[0]
    assert again[0] == turned[0]


@given(st.floats(0.01, 0.99), st.floats(-50, 50), st.floats(0, 100))
def test_turned_around_a_device_comes_back_the_way_it_went(at, speed, duration):
    start = np.array([at * SIDE_M])
    there, arriving = reflected(start + speed * duration, np.array([speed]), SIDE_M)
    back, leaving = reflected(there - arriving * duration, -arriving, SIDE_M)
    assert back[0] == pytest.approx(start[0], abs=1e-8)
    assert leaving[0] == pytest.approx(-speed, abs=1e-12)


@pytest.mark.parametrize("at", [-0.0, -5e-324, -1e-300, -1e-17, SIDE_M, math.nextafter(SIDE_M, 1e9), 2 * SIDE_M, 1e15])
def test_positions_at_the_very_border_stay_inside(at):
    position, _ = reflected(np.array([at]), np.array([1.0]), SIDE_M)
    assert 0 <= position[0] <= SIDE_M


# Uniform positions and headings


def p_of_uniform_square(position):
    """Least p of: each coordinate is uniform (Kolmogorov-Smirnov), and so are the cells of a 6 x 6 grid (chi-square)."""
    grid, _ = np.histogramdd(position.T, bins=6, range=[(0, SIDE_M), (0, SIDE_M)])
    axes = [stats.kstest(axis / SIDE_M, "uniform").pvalue for axis in position]
    return min(*axes, stats.chisquare(grid.ravel()).pvalue)


def p_of_uniform_headings(velocity):
    angle = np.arctan2(velocity[1], velocity[0]) / (2 * np.pi) % 1
    return stats.kstest(angle, "uniform").pvalue


@pytest.fixture(scope="module")
def crowd():
    return MobilityManager(vehicles(20_000, "area"), seed=11)


@pytest.mark.parametrize("time_s", [0, 0.5, 7, 30.25, 100, 250])
def test_placed_in_the_area_positions_and_headings_are_uniform_at_all_times(crowd, time_s):
    position, velocity = states_at(crowd, time_s)
    assert p_of_uniform_square(position) > IMPROBABLE
    assert p_of_uniform_headings(velocity) > IMPROBABLE


@pytest.mark.parametrize("time_s", [0, 100])
def test_no_direction_is_left_out(crowd, time_s):
    velocity = states_at(crowd, time_s)[1]
    angle = np.sort(np.arctan2(velocity[1], velocity[0]))
    # The longest gap between n points on a circle is close to 2 pi ln(n)/n; four times that is allowed.
    assert np.diff(angle, append=angle[0] + 2 * np.pi).max() < 4 * 2 * np.pi * math.log(len(angle)) / len(angle)


@pytest.mark.parametrize("time_s", [7, 100])
def test_headings_are_uniform_at_the_border_too(crowd, time_s):
    position, velocity = states_at(crowd, time_s)
    near_a_wall = (np.abs(position - SIDE_M / 2) > 0.4 * SIDE_M).any(axis=0)
    assert near_a_wall.sum() > 5000
    assert p_of_uniform_headings(velocity[:, near_a_wall]) > IMPROBABLE


def test_these_tests_would_notice_devices_that_are_clamped_at_the_border(monkeypatch):
    monkeypatch.setattr(mobility_manager, "reflected", lambda position, velocity, side: (np.clip(position, 0, side), velocity))
    manager = MobilityManager(vehicles(20_000, "area"), seed=11)
    assert p_of_uniform_square(states_at(manager, 0)[0]) > IMPROBABLE
    assert p_of_uniform_square(states_at(manager, 30)[0]) < 1e-9


def test_placed_in_the_cell_devices_are_uniform_in_the_disc():
    position, velocity = states_at(MobilityManager(vehicles(20_000, "cell"), seed=12), 0)
    east, north = position - SIDE_M / 2
    assert stats.kstest((east**2 + north**2) / RADIUS_M**2, "uniform").pvalue > IMPROBABLE
    assert stats.kstest(np.arctan2(north, east) / (2 * np.pi) % 1, "uniform").pvalue > IMPROBABLE
    assert p_of_uniform_headings(velocity) > IMPROBABLE


def test_placed_in_the_cell_the_share_inside_falls_from_1_towards_a_quarter_of_pi():
    # Limit: area of the disc over area of the square (design.md, section 4, "Devices").
    manager = MobilityManager(vehicles(20_000, "cell"), seed=13)
    shares = [manager.in_cell_share(second, second + 1) for second in (0, 3, 6, 12)]
    assert shares[0] == 1
    assert all(later < earlier for earlier, later in pairwise(shares))
    assert shares[-1] > math.pi / 4
    # 20,000 devices: the share of one second has a deviation of 0.003; ten of them are allowed.
    assert manager.in_cell_share(300, 400) == pytest.approx(math.pi / 4, abs=0.03)
    assert manager.in_cell_share(390, 400) == pytest.approx(math.pi / 4, abs=0.015)


def test_placed_in_the_area_the_share_inside_is_a_quarter_of_pi_from_the_start(crowd):
    assert crowd.in_cell_share(0, 1) == pytest.approx(math.pi / 4, abs=0.015)
    assert crowd.in_cell_share(0, 60) == pytest.approx(math.pi / 4, abs=0.015)


def test_share_inside_is_the_mean_over_whole_seconds():
    manager = MobilityManager(vehicles(50, "cell"), seed=3)
    by_second = [np.mean([manager.device(number, float(second)).in_coverage for number in range(50)]) for second in range(20, 25)]
    assert manager.in_cell_share(20, 25) == pytest.approx(np.mean(by_second))
    assert manager.in_cell_share(19.5, 24.5) == pytest.approx(np.mean(by_second))
    assert manager.in_cell_share(20, 20) == pytest.approx(by_second[0])


# Paths


def path_bytes(manager, seconds):
    return b"".join(part.tobytes() for time_s in range(seconds) for part in states_at(manager, time_s + 0.5))


def test_two_managers_with_one_seed_walk_byte_identical_paths():
    assert path_bytes(MobilityManager(population(), 5), 60) == path_bytes(MobilityManager(population(), 5), 60)


def test_another_seed_walks_another_path():
    assert path_bytes(MobilityManager(population(), 5), 3) != path_bytes(MobilityManager(population(), 6), 3)


@settings(max_examples=30)
@given(st.lists(st.tuples(st.integers(0, 19), st.floats(0, 60)), max_size=20), st.floats(0, 80))
def test_path_depends_on_no_query_and_on_no_duration(queries, extended_to_s):
    undisturbed = MobilityManager(population(20), 9)
    expected = [undisturbed.device(number, 40.5) for number in range(20)]
    asked = MobilityManager(population(20), 9)
    asked.extend_to(extended_to_s)
    before = [asked.device(*query) for query in queries]
    assert [asked.device(number, 40.5) for number in range(20)] == expected
    assert [asked.device(*query) for query in queries] == before


def test_one_device_and_all_together_are_the_same_states():
    manager = MobilityManager(population(30), 2)
    rng = np.random.default_rng(1)
    who, times = rng.integers(0, 30, 200), np.sort(rng.uniform(0, 50, 200))
    times[:5] = [0, 0, 1, 1, 2]
    times.sort()
    position, velocity = manager.states(who, times)
    for number, time_s, at, speed in zip(who.tolist(), times.tolist(), position.T.tolist(), velocity.T.tolist(), strict=True):
        device = manager.device(number, time_s)
        assert [device.x_m, device.y_m, device.vx_mps, device.vy_mps] == [*at, *speed]
        assert device.device_id == number
        assert device.in_coverage == manager.cell.contains(*at)


def test_asking_for_nobody_gives_nothing():
    position, velocity = MobilityManager(population(3), 2).states(np.array([], dtype=np.int64), np.array([]))
    assert position.shape == velocity.shape == (2, 0)


def test_between_whole_seconds_a_device_moves_in_a_straight_line_reflected_at_the_border():
    manager = MobilityManager(vehicles(500, "area"), 4)
    bounced = 0
    for number in range(500):
        at, later = manager.device(number, 12.0), manager.device(number, 12.75)
        raw = np.array([at.x_m + 0.75 * at.vx_mps, at.y_m + 0.75 * at.vy_mps])
        position, velocity = reflected(raw, np.array([at.vx_mps, at.vy_mps]), SIDE_M)
        assert [later.x_m, later.y_m] == pytest.approx(position.tolist())
        assert [later.vx_mps, later.vy_mps] == pytest.approx(velocity.tolist())
        bounced += bool((raw < 0).any() or (raw > SIDE_M).any())
    assert bounced > 0


def test_path_has_no_jump_at_a_whole_second():
    manager = MobilityManager(vehicles(500, "area"), 4)
    before, _ = states_at(manager, math.nextafter(20, 0))
    after, _ = states_at(manager, 20)
    np.testing.assert_allclose(after, before, atol=1e-9)


def test_nobody_ever_leaves_the_area():
    manager = MobilityManager(population(200, tram=(1.0, (50, 400), 0.05)), 8)
    for time_s in np.arange(0, 60, 0.3):
        position, _ = states_at(manager, time_s)
        assert position.min() >= 0
        assert position.max() <= SIDE_M


# Types, speeds, turns


def test_types_are_allotted_by_their_shares():
    manager = MobilityManager(population(100), 1)
    types = [manager.device(number, 0).device_type for number in range(manager.device_count)]
    assert {name: types.count(name) for name in set(types)} == {"pedestrian": 50, "vehicle": 30, "drone": 20}


def test_rounding_of_shares_goes_to_the_largest_remainder():
    # 7 devices: 3.5, 2.1, 1.4 of 50, 30, 20 % are cut to 3, 2, 1; the one left over goes to the remainder 0.5.
    manager = MobilityManager(population(7), 1)
    assert np.bincount(manager.type_code, minlength=4).tolist() == [4, 2, 1, 0]


@given(st.integers(1, 500), st.lists(st.integers(0, 20), min_size=1, max_size=6).filter(any))
def test_every_type_gets_its_share_to_less_than_one_device(count, parts):
    shares = [part / sum(parts) for part in parts]
    kinds = {f"kind{number}": (share, (1, 1), 0.0) for number, share in enumerate(shares)}
    allotted = np.bincount(MobilityManager(population(count, **kinds), 1).type_code, minlength=len(parts))
    assert allotted.sum() == count
    assert np.abs(allotted - np.array(shares) * count).max() < 1


def test_speed_is_drawn_once_uniform_in_the_range_of_the_type():
    manager = MobilityManager(population(6000, slow=(0.5, (1, 2), 0.1), fast=(0.5, (5, 15), 0.1)), 21)
    speed = np.hypot(*states_at(manager, 0)[1])
    for time_s in (1, 17, 40.5):
        np.testing.assert_allclose(np.hypot(*states_at(manager, time_s)[1]), speed, rtol=1e-12)
    assert stats.kstest(speed[manager.type_code == 0] - 1, "uniform").pvalue > IMPROBABLE
    assert stats.kstest((speed[manager.type_code == 1] - 5) / 10, "uniform").pvalue > IMPROBABLE


def test_devices_turn_as_often_as_their_type_says():
    kinds = {
        "never": (0.25, (5, 15), 0.0),
        "some": (0.25, (5, 15), 0.05),
        "more": (0.25, (5, 15), 0.3),
        "always": (0.25, (5, 15), 1.0),
    }
    manager = MobilityManager(population(4000, **kinds), 22)
    seconds = 150
    speeds = np.array([np.abs(states_at(manager, time_s)[1]) for time_s in range(seconds + 1)])
    turned = ~np.isclose(speeds[1:], speeds[:-1], rtol=1e-12).all(axis=1)  # a reflection changes signs only
    for code, (_, _, probability) in enumerate(kinds.values()):
        of_type = turned[:, manager.type_code == code]
        deviation = math.sqrt(probability * (1 - probability) / of_type.size)
        assert of_type.mean() == pytest.approx(probability, abs=4 * deviation + 1e-4)


def test_placement_and_movement_have_streams_of_their_own(monkeypatch):
    def turns_and_speeds():
        speeds = np.array([np.abs(states_at(manager, time_s)[1]) for time_s in range(30)])
        return ~np.isclose(speeds[1:], speeds[:-1], rtol=1e-12).all(axis=1), np.hypot(*speeds[0])

    def other_seed_for(other):
        return lambda seed, name: random_stream(seed + 1 if name == other else seed, name)

    manager = MobilityManager(vehicles(200, "area"), 30)
    turns, speeds = turns_and_speeds()
    monkeypatch.setattr(mobility_manager, "random_stream", other_seed_for("placement"))
    manager = MobilityManager(vehicles(200, "area"), 30)
    np.testing.assert_array_equal(turns_and_speeds()[0], turns)
    assert not np.isclose(turns_and_speeds()[1], speeds).any()
    monkeypatch.setattr(mobility_manager, "random_stream", other_seed_for("movement"))
    manager = MobilityManager(vehicles(200, "area"), 30)
    np.testing.assert_array_equal(turns_and_speeds()[1], speeds)
    assert (turns_and_speeds()[0] != turns).any()


def test_fixed_devices_stay_where_they_are():
    manager = MobilityManager(population(10, fixed=(1.0, (0, 0), 0.0)), 1)
    np.testing.assert_array_equal(states_at(manager, 100)[0], states_at(manager, 0)[0])
    device = manager.device(3, 100)
    assert device.speed_mps == 0
    assert manager.cell.time_to_exit_s(device) == math.inf


def test_speed_of_a_device_is_the_length_of_its_velocity():
    assert Device(0, "drone", 0, 0, 3, -4, True).speed_mps == 5


# Replay


SEEN = [
    Device(7, "drone", 100, 250, 10, 0, True),
    Device(3, "vehicle", 10, 10, -10, 0, False),
    Device(7, "drone", 300, 250, 0, 5, True),
]
SEEN_AT_S = [1.0, 2.0, 20.0]


@pytest.fixture
def replay():
    return RecordedMobility(
        Cell(SIDE_M, RADIUS_M),
        np.array([40, 41, 42]),
        np.array([device.device_id for device in SEEN]),
        np.array(SEEN_AT_S),
        np.array([device.in_coverage for device in SEEN]),
        lambda index: SEEN[index],
    )


@pytest.mark.parametrize(
    ("device_id", "time_s", "expected"),
    [
        (7, 1.0, Device(7, "drone", 100, 250, 10, 0, True)),
        (7, 5.0, Device(7, "drone", 140, 250, 10, 0, True)),
        (7, 20.0, Device(7, "drone", 300, 250, 0, 5, True)),  # from its latest task on
        (7, 70.0, Device(7, "drone", 300, 500, 0, 5, False)),
        (7, 80.0, Device(7, "drone", 300, 450, 0, -5, True)),  # reflected at the border
        (3, 4.0, Device(3, "vehicle", 10, 10, 10, 0, False)),
        (7, 0.0, Device(7, "drone", 100, 250, 10, 0, True)),  # before its first task: as it was then
    ],
)
def test_replayed_device_goes_straight_on_from_its_latest_task(replay, device_id, time_s, expected):
    assert replay.device(device_id, time_s) == expected


def test_replay_counts_the_tasks_inside_and_knows_nothing_where_there_were_none(replay):
    assert replay.in_cell_share(0, 10) == 0.5
    assert replay.in_cell_share(2, 20) == 0.0
    assert replay.in_cell_share(20, 21) == 1.0
    assert replay.in_cell_share(3, 19) is None


def test_replay_tells_of_many_answers_what_it_tells_of_each(replay):
    sent, time_s = [2, 0, 1, 0], np.array([70.0, 30.0, 4.0, 2.0])
    each = [replay.still_covered(SEEN[i], SEEN_AT_S[i], at_s) for i, at_s in zip(sent, time_s, strict=True)]
    task_id, device_id = np.array([40, 41, 42])[sent], np.array([SEEN[i].device_id for i in sent])
    assert replay.covered(task_id, device_id, time_s).tolist() == each == [False, True, False, True]


def test_path_tells_of_many_answers_what_it_tells_of_each():
    mobility = MobilityManager(default_settings().devices, seed=3)
    rng = np.random.default_rng(1)
    device_id, time_s = rng.integers(0, mobility.device_count, 2000), rng.uniform(0, 300, 2000)
    covered = mobility.covered(np.arange(2000), device_id, time_s)
    assert 0.5 < covered.mean() < 1
    for device, at_s, inside in zip(device_id.tolist(), time_s.tolist(), covered.tolist(), strict=True):
        assert mobility.device(device, at_s).in_coverage is inside


def test_state_of_one_device_is_the_same_number_for_number_as_of_many():
    mobility = MobilityManager(default_settings().devices, seed=4)
    rng = np.random.default_rng(2)
    device_id, time_s = rng.integers(0, mobility.device_count, 500), np.sort(rng.uniform(0, 200, 500))
    position, velocity = mobility.states(device_id, time_s)
    for i, (who, at_s) in enumerate(zip(device_id.tolist(), time_s.tolist(), strict=True)):
        device = mobility.device(who, at_s)
        assert [device.x_m, device.y_m, device.vx_mps, device.vy_mps] == [*position[:, i], *velocity[:, i]]
