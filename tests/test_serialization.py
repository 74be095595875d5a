"""Values become JSON without a loss, and errors become text that every database stores."""

import collections
import enum
import json
import math
import types
from typing import Any

import pytest
from django.utils.functional import lazystr
from django.utils.safestring import mark_safe
from hypothesis import given, settings
from hypothesis import strategies as st

from dj_queue.exceptions import DjQueueError, NotJSONError
from dj_queue.serialization import ErrorRecord, JSONLimits, describe, dump, normalize, storable
from tests.working import name_case

pytestmark = pytest.mark.pure  # no database has a part in it

WIDE = JSONLimits(depth=500)
NARROW = JSONLimits(depth=3, nul=False)
ROUNDING = JSONLimits(depth=500, wide_integers=False)


class Colour(enum.StrEnum):
    RED = "red"


class Number(enum.IntEnum):
    ONE = 1


class Fraction(float):
    pass


class TestNormalize:
    @pytest.mark.parametrize(
        ("value", "expected"),
        [
            ((1, (2, 3)), [1, [2, 3]]),
            (b"text \xc3\xa9", "text é"),
            ([b"a", (b"b",)], ["a", ["b"]]),
            (range(3), [0, 1, 2]),
            (collections.deque([1]), [1]),
            (collections.OrderedDict(b=1, a=2), {"b": 1, "a": 2}),
            (types.MappingProxyType({"a": (1,)}), {"a": [1]}),
            (collections.namedtuple("Point", "x y")(1, 2), [1, 2]),
            (Colour.RED, "red"),
            ({Colour.RED: Number.ONE}, {"red": 1}),
            (mark_safe("<b>"), "<b>"),
            (Fraction(1.5), 1.5),
            (True, True),
            (1e16, 10**16),
            (-1e23, -99999999999999991611392),
            (9.9e15, 9.9e15),
        ],
        ids=name_case,
    )
    def test_becomes_plain_json(self, value: Any, expected: Any) -> None:
        found = normalize(value, WIDE)
        assert found == expected
        assert repr(found) == repr(expected)  # of plain types all the way down
        assert json.loads(dump(found)) == found

    def test_keeps_the_order_of_keys(self) -> None:
        assert list(normalize({"b": 1, "a": 2, "c": 3}, WIDE)) == ["b", "a", "c"]

    def test_copies(self) -> None:
        given: dict[str, Any] = {"a": [1], "b": {}}
        found = normalize(given, WIDE)
        given["a"].append(2)
        given["b"]["x"] = 1
        assert found == {"a": [1], "b": {}}

    @pytest.mark.parametrize(
        ("value", "text"),
        [
            ({1}, "the value is a set"),
            ([1, Ellipsis], "[1] is an ellipsis"),
            ({"a": [0, {"b": 1j}]}, "['a'][1]['b'] is a complex"),
            (lazystr("lazy"), "__proxy__"),
            (float("nan"), "nan"),
            ([float("inf")], "[0] is inf"),
            ({"x": float("-inf")}, "['x'] is -inf"),
            ({1: 2}, "the key 1"),
            ([{None: 1}], "[0] has the key None"),
            ({b"k": 1}, "the key b'k'"),
            ("\ud800", "lone surrogate"),
            ({"\ud800": 1}, "lone surrogate"),
            (b"\xff", "not UTF-8"),
        ],
        ids=ascii,
    )
    def test_refuses_and_names_the_place(self, value: Any, text: str) -> None:
        with pytest.raises(NotJSONError) as caught:
            normalize(value, WIDE)
        assert text in str(caught.value)
        assert isinstance(caught.value, TypeError)
        assert isinstance(caught.value, DjQueueError)

    @pytest.mark.parametrize(
        ("value", "fits"),
        [
            ([[[]]], True),
            ([[[1]]], True),
            ({"a": {"b": {}}}, True),
            ([[[[]]]], False),
            ({"a": [{"b": []}]}, False),
            ([1, [2, [3, []]]], False),
        ],
        ids=name_case,
    )
    def test_depth_is_limited(self, value: Any, fits: bool) -> None:
        if fits:
            assert normalize(value, NARROW) == value
        else:
            with pytest.raises(NotJSONError, match="deeper than 3 levels"):
                normalize(value, NARROW)

    def test_a_value_that_contains_itself(self) -> None:
        mapping: dict[str, Any] = {}
        mapping["me"] = [mapping]
        with pytest.raises(NotJSONError, match="deeper"):
            normalize(mapping, WIDE)

    @pytest.mark.parametrize("value", ["a\0", {"\0": 1}, [b"\0"]], ids=name_case)
    def test_nul_depends_on_the_database(self, value: Any) -> None:
        with pytest.raises(NotJSONError, match="NUL"):
            normalize(value, NARROW)
        assert "\\u0000" in dump(normalize(value, WIDE))

    @pytest.mark.parametrize("value", [2**64, -(2**63) - 1, [10**40]], ids=name_case)
    def test_integers_of_more_than_64_bits_depend_on_the_database(self, value: Any) -> None:
        with pytest.raises(NotJSONError, match="64 bits"):
            normalize(value, ROUNDING)
        assert normalize(value, WIDE) == value

    def test_numbers_that_fit_keep_their_type(self) -> None:
        fitting = [2**64 - 1, -(2**63), True, 1e16, 1e300]
        assert [(type(each), each) for each in normalize(fitting, ROUNDING)] == [(type(each), each) for each in fitting]

    @given(
        st.recursive(
            st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text() | st.binary(),
            lambda inner: st.lists(inner) | st.tuples(inner, inner) | st.dictionaries(st.text() | st.integers(), inner),
            max_leaves=10,
        )
    )
    @settings(max_examples=300, deadline=None)
    def test_is_refused_or_comes_back_the_same(self, value: Any) -> None:
        try:
            found = normalize(value, WIDE)
        except NotJSONError:
            return
        assert json.loads(dump(found)) == found
        assert normalize(found, WIDE) == found


class TestDump:
    def test_is_compact_and_readable(self) -> None:
        assert dump({"é": [1, None, True], "b": "\n"}) == '{"é":[1,null,true],"b":"\\n"}'

    def test_refuses_an_integer_that_python_does_not_write(self) -> None:
        with pytest.raises(NotJSONError, match="digits"):
            dump([10**5000])

    def test_writes_floats_exactly(self) -> None:
        for number in (0.1, 1 / 3, 5e-324, math.pi * 1e15):
            assert json.loads(dump(number)) == number


class BaseProblem(BaseException):
    pass


class Unprintable(Exception):
    def __init__(self, raised: type[BaseException]) -> None:
        self.raised = raised

    def __str__(self) -> str:
        raise self.raised("no text for you")

    __repr__ = __str__


class TestDescribe:
    @staticmethod
    def caught(error: BaseException) -> BaseException:
        try:
            raise error
        except BaseException as raised:
            return raised

    def test_an_ordinary_exception(self) -> None:
        record = describe(self.caught(ValueError("on purpose")))
        assert record.exception_class == "builtins.ValueError"
        assert record.message == "on purpose"
        assert record.traceback.startswith("Traceback (most recent call last):\n")
        assert record.traceback.endswith("ValueError: on purpose\n")

    def test_leaves_out_our_own_frames(self) -> None:
        error = self.caught(ValueError("x"))
        assert "in caught" in describe(error).traceback
        for frames in (1, 2, 50):
            record = describe(error, skip_frames=frames)
            assert "in caught" not in record.traceback
            assert record.traceback.endswith("ValueError: x\n")

    def test_an_exception_that_was_never_raised(self) -> None:
        assert describe(KeyError("k"), skip_frames=2).message == "'k'"

    def test_a_class_inside_a_function(self) -> None:
        class LocalError(Exception):
            pass

        path = describe(LocalError()).exception_class
        assert path.endswith("TestDescribe.test_a_class_inside_a_function.<locals>.LocalError")

    def test_an_exception_group(self) -> None:
        record = describe(self.caught(ExceptionGroup("several", [ValueError("a"), KeyError("b")])))
        assert "ValueError: a" in record.traceback
        assert "KeyError: 'b'" in record.traceback

    @pytest.mark.parametrize("raised", [RuntimeError, SystemExit, KeyboardInterrupt, BaseProblem])
    def test_never_raises(self, raised: type[BaseException]) -> None:
        record = describe(self.caught(Unprintable(raised)))
        assert record.exception_class.endswith("Unprintable")
        assert raised.__name__ in record.message
        assert record.traceback

    def test_text_that_no_database_stores(self) -> None:
        record = describe(self.caught(ValueError("a\0b\udc80c")))
        assert record.message == "a\\x00b\\udc80c"
        for text in record:
            assert "\0" not in text
            text.encode()

    def test_long_names_and_messages_are_cut(self) -> None:
        error = type("E" * 1000, (Exception,), {})("m" * 10_000_000)
        record = describe(self.caught(error))
        assert len(record.exception_class) == 255
        assert len(record.message) < 66_000
        assert len(record.traceback) < 66_000
        assert isinstance(record, ErrorRecord)


class TestStorable:
    @pytest.mark.parametrize("text", ["", "plain", "é\U0001f600", "x" * 65_536, "a\n\tb"], ids=len)
    def test_leaves_good_text_alone(self, text: str) -> None:
        assert storable(text) == text

    def test_keeps_both_ends_of_long_text(self) -> None:
        text = storable("begin" + "x" * 1_000_000 + "end")
        assert text.startswith("begin")
        assert text.endswith("end")
        assert f"{1_000_008 - 65_536} characters left out" in text

    @given(st.text(alphabet=st.characters(), max_size=50))
    @settings(max_examples=200, deadline=None)
    def test_what_it_returns_can_be_stored(self, text: str) -> None:
        found = storable(text)
        assert "\0" not in found
        found.encode()
        assert storable(found) == found
