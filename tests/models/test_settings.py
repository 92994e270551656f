"""What a wrong setting is told: the key, its value, and the fix, in one line."""

import math
from typing import Annotated, Literal

import pytest
from pydantic import Discriminator, Field, Tag, model_validator

from models.merging.settings import MergeSettings
from models.settings import Settings, UserError, check, nearest


class Part(Settings):
    size: int | list[int] = 0
    share: float = Field(0.5, ge=0, lt=1)

    @model_validator(mode="after")
    def _fits(self):
        if self.size == 13:
            raise ValueError("size = 13: brings bad luck; use 12")
        if self.size == 14:
            raise ValueError("part.size = 14: is as bad")
        return self


class Cat(Settings):
    name: Literal["cat"] = "cat"
    lives: int = 9
    part: Part = Part()


class Dog(Settings):
    name: Literal["dog"] = "dog"
    tricks: Literal["sit", "roll"] = "sit"


class Day(Settings):
    hour: int = 0


class Week(Settings):
    days: list[int] = Field([0], min_length=1, max_length=2)


def open_by(value):
    return "week" if isinstance(value, dict) and "days" in value else "day"


class Zoo(Settings):
    title: str = Field("zoo", pattern="^[a-z]+$", description="lower-case letters")
    open: bool = True
    price: float = Field(1.0, gt=0)
    pair: list[Annotated[float, Field(lt=1)]] = [0.1, 0.2]
    pet: Annotated[Cat | Dog, Field(discriminator="name")] = Cat()
    spare: Part | None = None
    food: Literal["hay", "fish", 3] | None = None
    shut: Annotated[Annotated[Day, Tag("day")] | Annotated[Week, Tag("week")], Discriminator(open_by)] = Day()


@pytest.mark.parametrize(
    ("values", "line"),
    [
        ({"pricee": 1}, "zoo.pricee: unknown key; did you mean price?"),
        ({"x": 1}, "zoo.x: unknown key; known: food, open, pair, pet, price, shut, spare, title"),
        ({"price": -1}, "zoo.price = -1: must be greater than 0"),
        ({"price": "1e-3x"}, "zoo.price = '1e-3x': should be a valid number"),
        ({"price": True}, "zoo.price = True: should be a valid number"),
        ({"price": math.inf}, "zoo.price = inf: should be a finite number"),
        ({"price": math.nan}, "zoo.price = nan: should be a finite number"),
        ({"price": None}, "zoo.price = None: should be a valid number"),
        ({"open": "no"}, "zoo.open = 'no': use true or false"),
        ({"open": 1}, "zoo.open = 1: use true or false"),
        ({"title": "Zoo"}, "zoo.title = 'Zoo': must be lower-case letters"),
        ({"pair": [0.5, 1.5]}, "zoo.pair.1 = 1.5: should be less than 1"),
        ({"spare": {"share": 1.0}}, "zoo.spare.share = 1.0: must be at least 0 and less than 1"),
        ({"spare": 3}, "zoo.spare = 3: must be a section, as in spare: {key: value}"),
        ({"pet": None}, "zoo.pet = None: must be a section, as in pet: {key: value}"),
        ({"pet": {}}, "zoo.pet.name: missing; known: cat, dog"),
        ({"pet": {"name": "catt"}}, "zoo.pet.name = 'catt': unknown; did you mean cat?"),
        ({"pet": {"name": ["cat"]}}, "zoo.pet.name = \"['cat']\": unknown; did you mean cat?"),
        ({"pet": {"name": "cat", "live": 3}}, "zoo.pet.live: unknown key; did you mean lives?"),
        ({"pet": {"name": "cat", "cat": 3}}, "zoo.pet.cat: unknown key; known: lives, name, part"),
        ({"pet": {"name": "dog", "tricks": "rol"}}, "zoo.pet.tricks = 'rol': did you mean roll? (sit, roll)"),
        ({"pet": {"name": "dog", "tricks": 1}}, "zoo.pet.tricks = 1: known: sit, roll"),
        ({"pet": {"name": "cat", "part": {"size": 13}}}, "zoo.pet.part.size = 13: brings bad luck; use 12"),
        ({"pet": {"name": "cat", "part": {"size": 14}}}, "zoo.pet.part.size = 14: is as bad"),
        ({"food": "hey"}, "zoo.food = 'hey': did you mean hay? (hay, fish, 3)"),
        ({"food": 1}, "zoo.food = 1: known: hay, fish, 3"),
        ({"shut": {"days": [1], "x": 1}}, "zoo.shut.x: unknown key; known: days"),
        ({"shut": {"x": 1}}, "zoo.shut.x: unknown key; known: hour"),
        ({"shut": {"days": []}}, "zoo.shut.days = []: must have at least 1 entry, not 0"),
        ({"shut": {"days": [1, 2, 3]}}, "zoo.shut.days = [1, 2, 3]: must have at most 2 entries, not 3"),
        ({"spare": {"size": "a"}}, "zoo.spare.size = 'a': should be a valid integer or should be a valid list"),
        ({"spare": {"size": [1, "a"]}}, "zoo.spare.size.1 = 'a': should be a valid integer"),
        ({"price": -1, "open": 1, "spare": {"size": "a"}}, "zoo.open = 1: use true or false (and 2 more)"),
    ],
)
def test_the_line(values, line):
    with pytest.raises(UserError) as error:
        check(Zoo, values, where="zoo")
    assert str(error.value) == line


def test_without_a_prefix_a_section_says_its_own_key():
    with pytest.raises(UserError, match=r"^size = 13: brings bad luck"):
        check(Part, {"size": 13})


def test_a_long_value_is_cut_and_stays_on_one_line():
    with pytest.raises(UserError) as error:
        check(Zoo, {"price": "a\nb" * 1000})
    assert "\n" not in str(error.value) and len(str(error.value)) < 200


def test_what_fits_is_kept_as_it_is():
    values = {"price": 2, "pet": {"name": "dog"}, "spare": {"size": [1, 2]}}
    zoo = check(Zoo, values)
    assert (zoo.price, zoo.pet, zoo.spare.size) == (2.0, Dog(), [1, 2])
    assert values == {"price": 2, "pet": {"name": "dog"}, "spare": {"size": [1, 2]}}


def test_nearest_names_the_near_or_all():
    assert nearest("tomee", ["none", "tome"]) == "did you mean tome?"
    assert nearest("xyz", ["none", "tome"]) == "known: none, tome"


@pytest.mark.parametrize(
    ("merge", "line"),
    [
        ({"method": "facility_location", "form": "lazy"}, "merge.form = 'lazy': known: auto, "),
        ({"metric": "token"}, "merge.metric = 'token': did you mean tokens? ("),
        ({"r": {"train": [0, 8], "x": 1}}, "merge.r.x: unknown key; known: train"),
        ({"r": {"first": 3, "last": 1, "x": 1}}, "merge.r.x: unknown key; known: first, last"),
        ({"r": {"train": [0, 8, 9]}}, "merge.r.train = [0, 8, 9]: must be two numbers, the least and the most r"),
        ({"r": {"train": []}}, "merge.r.train = []: must be two numbers, the least and the most r"),
        (
            {"keep": {"rate": 0.5, "blocks": [1]}, "r": 3},
            "merge.keep = {'rate': 0.5, 'blocks': [1]}: cannot be combined with merge.r = 3; give one of them",
        ),
        (
            {"r": {"train": [0, 4]}, "target_ratio": 2},
            "merge.target_ratio = 2.0: cannot be combined with merge.r = {'train': [0, 4]}; give one of them",
        ),
    ],
)
def test_a_merge_section_is_answered_in_words(merge, line):
    with pytest.raises(UserError) as error:
        check(MergeSettings, merge, "merge")
    assert str(error.value).startswith(line) and "typing" not in str(error.value) and "None" not in str(error.value)
