"""Templates of arithmetic word problems: ``{who}``, ``{friend}``, ``{things}`` are words, other fields numbers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

NAMES = (  # noqa: SIM905 - a list literal takes forty lines
    "Anna Ben Carla David Elena Farid Grace Hugo Irene Jamal Keiko Liam Mona Nikhil Olga Pedro Quinn Rosa Samir "
    "Tara Umar Vera Wendy Yusuf Zoe Amara Bruno Chloe Dmitri Esther Felix Gloria Hassan Isabel Jonas Kavya Leo "
    "Marta Noah Priya"
).split()
THINGS = (  # noqa: SIM905
    "apples,pencils,marbles,stickers,books,oranges,shells,coins,buttons,cards,balloons,cookies,flowers,stamps,"
    "beads,candles,eggs,lemons,notebooks,ribbons,toy cars,walnuts,postcards,peaches,crayons,badges,bottles,"
    "tickets,muffins,keys"
).split(",")


@dataclass(frozen=True)
class Template:
    """One kind of word problem.

    Args:
        question: Text with fields.
        answer: The worked answer, with fields; ``{result}`` follows in a closing sentence.
        ranges: Lowest and highest value of each number that is drawn.
        solve: From the drawn numbers to those that follow, ``result`` among them.
    """

    question: str
    answer: str
    ranges: dict[str, tuple[int, int]]
    solve: Callable[..., dict[str, int]]


TEMPLATES = (
    Template(
        "{who} has {a} {things} and buys {b} more. How many {things} does {who} have now?",
        "{who} starts with {a} {things} and gets {b} more. {a} + {b} = {result}.",
        {"a": (3, 80), "b": (2, 60)},
        lambda a, b: {"result": a + b},
    ),
    Template(
        "There were {total} {things} in a basket. {who} took {a} of them home. How many {things} were left?",
        "{a} of the {total} {things} were taken away, so {total} - {a} = {result} were left.",
        {"a": (2, 60), "rest": (3, 70)},
        lambda a, rest: {"total": a + rest, "result": rest},
    ),
    Template(
        "{who} packs {things} into boxes. Each box holds {n} {things} and there are {k} full boxes. How many "
        "{things} did {who} pack?",
        "Every one of the {k} boxes holds {n} {things}. {k} * {n} = {result}.",
        {"n": (3, 24), "k": (3, 20)},
        lambda n, k: {"result": n * k},
    ),
    Template(
        "{total} {things} are shared equally among {k} children. How many does each child get?",
        "We divide the {total} {things} into {k} equal parts: {total} / {k} = {result}.",
        {"q": (2, 30), "k": (2, 16)},
        lambda q, k: {"total": q * k, "result": q},
    ),
    Template(
        "{who} read {a} pages on Monday and {b} pages on Tuesday. The book has {total} pages. How many pages are "
        "still to be read?",
        "So far {who} has read {a} + {b} = {c} pages. That leaves {total} - {c} = {result} pages.",
        {"a": (8, 60), "b": (8, 60), "rest": (20, 180)},
        lambda a, b, rest: {"c": a + b, "total": a + b + rest, "result": rest},
    ),
    Template(
        "A ticket for the museum costs {p} dollars. {who} buys {k} tickets and pays with {paid} dollars. How much "
        "change does {who} get back?",
        "The tickets cost {k} * {p} = {cost} dollars together. The change is {paid} - {cost} = {result} dollars.",
        {"p": (4, 18), "k": (2, 7), "rest": (1, 30)},
        lambda p, k, rest: {"cost": p * k, "paid": p * k + rest, "result": rest},
    ),
    Template(
        "{who} earns {w} dollars an hour and works {h} hours a day. How much does {who} earn in {d} days?",
        "In one day {who} earns {w} * {h} = {day} dollars. In {d} days that makes {day} * {d} = {result} dollars.",
        {"w": (9, 32), "h": (3, 9), "d": (2, 6)},
        lambda w, h, d: {"day": w * h, "result": w * h * d},
    ),
    Template(
        "{friend} is {a} years old. {who} is {b} years older than {friend}. How old are they together?",
        "{who} is {a} + {b} = {c} years old. Together they are {a} + {c} = {result} years old.",
        {"a": (5, 50), "b": (2, 25)},
        lambda a, b: {"c": a + b, "result": 2 * a + b},
    ),
    Template(
        "A train travels {v} kilometers per hour. How far does it go in {t} hours?",
        "The distance is the speed times the time: {v} * {t} = {result} kilometers.",
        {"v": (35, 160), "t": (2, 9)},
        lambda v, t: {"result": v * t},
    ),
    Template(
        "{who} drove {d} kilometers in {t} hours at a steady speed. What was the speed in kilometers per hour?",
        "Speed is distance divided by time. {d} / {t} = {result} kilometers per hour.",
        {"v": (30, 120), "t": (2, 9)},
        lambda v, t: {"d": v * t, "result": v},
    ),
    Template(
        "A farmer has {k} cows and twice as many sheep. How many animals are there in all?",
        "There are 2 * {k} = {s} sheep. With the cows that is {s} + {k} = {result} animals.",
        {"k": (4, 400)},
        lambda k: {"s": 2 * k, "result": 3 * k},
    ),
    Template(
        "{who} has {m} times as many {things} as {friend}, who has {a}. How many more {things} does {who} have "
        "than {friend}?",
        "{who} has {m} * {a} = {b} {things}. The difference is {b} - {a} = {result}.",
        {"m": (2, 9), "a": (3, 60)},
        lambda m, a: {"b": m * a, "result": m * a - a},
    ),
    Template(
        "A rectangular garden is {l} meters long and {w} meters wide. How long is the fence around it?",
        "The fence goes along two long and two short sides. {l} + {w} = {h}, and 2 * {h} = {result} meters.",
        {"l": (8, 70), "w": (3, 40)},
        lambda l, w: {"h": l + w, "result": 2 * (l + w)},  # noqa: E741
    ),
    Template(
        "What is the area of a room that is {l} meters long and {w} meters wide?",
        "The area of a rectangle is length times width: {l} * {w} = {result} square meters.",
        {"l": (4, 40), "w": (3, 30)},
        lambda l, w: {"result": l * w},  # noqa: E741
    ),
    Template(
        "At the bakery {who} sold {a} loaves of bread in the morning and {b} fewer in the afternoon. How many "
        "loaves were sold that day?",
        "In the afternoon {a} - {b} = {c} loaves were sold. Over the day, {a} + {c} = {result}.",
        {"c": (5, 70), "b": (3, 40)},
        lambda c, b: {"a": b + c, "result": b + 2 * c},
    ),
    Template(
        "A bus carries {a} passengers. At the next stop {b} get off and {c} get on. How many passengers are on "
        "the bus now?",
        "After {b} get off there are {a} - {b} = {d} passengers. Then {c} get on: {d} + {c} = {result}.",
        {"d": (3, 45), "b": (2, 20), "c": (2, 24)},
        lambda d, b, c: {"a": d + b, "result": d + c},
    ),
    Template(
        "{who} saves {a} dollars every week. How many weeks does it take to save {total} dollars?",
        "We ask how often {a} goes into {total}: {total} / {a} = {result} weeks.",
        {"a": (4, 45), "w": (3, 26)},
        lambda a, w: {"total": a * w, "result": w},
    ),
    Template(
        "A recipe for {n} people needs {a} grams of flour. How much flour is needed for {m} people?",
        "For one person you need {a} / {n} = {one} grams. For {m} people that is {one} * {m} = {result} grams.",
        {"n": (2, 6), "one": (30, 120), "m": (7, 14)},
        lambda n, one, m: {"a": n * one, "result": m * one},
    ),
    Template(
        "In a school there are {k} classes with {n} students each. Today {a} students are ill. How many "
        "students came to school?",
        "The school has {k} * {n} = {all} students. {all} - {a} = {result} of them came.",
        {"k": (4, 15), "n": (18, 32), "a": (3, 40)},
        lambda k, n, a: {"all": k * n, "result": k * n - a},
    ),
    Template(
        "{who} bought {k} {things} for {p} cents each and one bag for {b} cents. What did it cost in total?",
        "The {things} cost {k} * {p} = {c} cents. Adding the bag, {c} + {b} = {result} cents.",
        {"k": (3, 14), "p": (12, 75), "b": (5, 30)},
        lambda k, p, b: {"c": k * p, "result": k * p + b},
    ),
    Template(
        "The temperature was {a} degrees at noon. By the evening it had fallen by {b} degrees, and overnight it "
        "fell another {c} degrees. What was the temperature in the morning?",
        "First it fell to {a} - {b} = {d} degrees, then to {d} - {c} = {result} degrees.",
        {"result": (1, 20), "b": (2, 14), "c": (2, 10)},
        lambda result, b, c: {"a": result + b + c, "d": result + c},
    ),
    Template(
        "A tank holds {full} liters. It is filled at {r} liters per minute and already contains {a} liters. "
        "After how many minutes is it full?",
        "There are {full} - {a} = {rest} liters missing. {rest} / {r} = {result} minutes.",
        {"r": (3, 25), "result": (4, 40), "a": (10, 200)},
        lambda r, result, a: {"rest": r * result, "full": r * result + a},
    ),
    Template(
        "{who} and {friend} collected {total} {things} together. {who} collected {a} of them. How many more did "
        "{friend} collect than {who}?",
        "{friend} collected {total} - {a} = {b} {things}. That is {b} - {a} = {result} more.",
        {"a": (5, 70), "result": (2, 50)},
        lambda a, result: {"b": a + result, "total": 2 * a + result},
    ),
    Template(
        "A shop sells {things} in packs of {n}. {who} needs {need} {things}. How many packs must {who} buy at "
        "least?",
        "{q} packs would give only {q} * {n} = {c} {things}, which is not enough. With one more pack, {result} "
        "packs are needed.",
        {"n": (4, 15), "q": (2, 14), "r": (1, 3)},
        lambda n, q, r: {"need": q * n + r, "c": q * n, "result": q + 1},
    ),
    Template(
        "{who} runs {a} kilometers every morning. How many kilometers is that in {w} weeks?",
        "A week has 7 days, so it is {a} * 7 = {b} kilometers a week. {b} * {w} = {result} kilometers.",
        {"a": (2, 15), "w": (2, 40)},
        lambda a, w: {"b": 7 * a, "result": 7 * a * w},
    ),
    Template(
        "A film starts {a} minutes after six o'clock and lasts {b} minutes. How many minutes after six does it "
        "end?",
        "We add the length of the film to its start. {a} + {b} = {result} minutes after six.",
        {"a": (5, 55), "b": (61, 160)},
        lambda a, b: {"result": a + b},
    ),
    Template(
        "Half of the {total} {things} in the drawer belong to {who}. {who} gives {a} of them to {friend}. How "
        "many does {who} keep?",
        "{who} owns {total} / 2 = {h} {things}. After the gift {h} - {a} = {result} remain.",
        {"result": (4, 60), "a": (2, 40)},
        lambda result, a: {"h": result + a, "total": 2 * (result + a)},
    ),
    Template(
        "A coat costs {p} dollars. In the sale it is {d} dollars cheaper, and {who} also has a voucher for {v} "
        "dollars. What does {who} pay?",
        "The sale price is {p} - {d} = {s} dollars. With the voucher, {s} - {v} = {result} dollars.",
        {"result": (15, 90), "d": (5, 40), "v": (5, 20)},
        lambda result, d, v: {"s": result + v, "p": result + v + d},
    ),
    Template(
        "{k} friends go out for lunch. Each pays {p} dollars for food and {q} dollars for a drink. How much do "
        "they pay altogether?",
        "One person pays {p} + {q} = {s} dollars. For all {k} friends it is {k} * {s} = {result} dollars.",
        {"k": (3, 12), "p": (6, 22), "q": (2, 6)},
        lambda k, p, q: {"s": p + q, "result": k * (p + q)},
    ),
    Template(
        "There are {r} rows of chairs in the hall with {n} chairs in each row. {a} chairs are broken. How many "
        "chairs can be used?",
        "In all there are {r} * {n} = {all} chairs. Without the broken ones, {all} - {a} = {result} can be used.",
        {"r": (6, 20), "n": (8, 25), "a": (2, 20)},
        lambda r, n, a: {"all": r * n, "result": r * n - a},
    ),
    Template(
        "A rope of {total} meters is cut into pieces of {a} meters. How many pieces are there?",
        "We divide the length of the rope by that of a piece: {total} / {a} = {result} pieces.",
        {"a": (2, 15), "result": (4, 60)},
        lambda a, result: {"total": a * result},
    ),
    Template(
        "{who} planted {a} tulips, {b} roses and {c} lilies. How many flowers is that?",
        "We add all three: {a} + {b} = {d}, and {d} + {c} = {result}.",
        {"a": (5, 40), "b": (5, 40), "c": (5, 40)},
        lambda a, b, c: {"d": a + b, "result": a + b + c},
    ),
    Template(
        "The scores of {who} in three games were {a}, {b} and {c}. What was the average score?",
        "The sum of the scores is {a} + {b} + {c} = {s}. The average is {s} / 3 = {result}.",
        {"result": (12, 60), "x": (1, 9), "y": (1, 9)},
        lambda result, x, y: {"a": result + x, "b": result - y, "c": result - x + y, "s": 3 * result},
    ),
    Template(
        "{who} had some {things}. After giving {a} to {friend} and losing {b}, there were {c} left. How many "
        "{things} did {who} have at first?",
        "We go backwards. Before the loss there were {c} + {b} = {d}, and before the gift {d} + {a} = {result}.",
        {"a": (3, 30), "b": (2, 15), "c": (4, 50)},
        lambda a, b, c: {"d": c + b, "result": a + b + c},
    ),
    Template(
        "A printer prints {v} pages a minute. How many minutes does it need for {k} copies of a report of {n} "
        "pages?",
        "There are {k} * {n} = {all} pages to print. {all} / {v} = {result} minutes.",
        {"v": (4, 12), "k": (2, 9), "m": (2, 8)},
        lambda v, k, m: {"n": v * m, "all": k * v * m, "result": k * m},
    ),
    Template(
        "{who} is {a} centimeters tall. {friend} is {b} centimeters shorter. How tall is {friend}?",
        "We subtract the difference from the height of {who}: {a} - {b} = {result} centimeters.",
        {"a": (140, 195), "b": (3, 35)},
        lambda a, b: {"result": a - b},
    ),
    Template(
        "A spider has 8 legs and an ant has 6. How many legs do {a} spiders and {b} ants have together?",
        "The spiders have {a} * 8 = {s} legs and the ants {b} * 6 = {t} legs. {s} + {t} = {result}.",
        {"a": (2, 30), "b": (2, 30)},
        lambda a, b: {"s": 8 * a, "t": 6 * b, "result": 8 * a + 6 * b},
    ),
    Template(
        "One third of the {total} seats in a theater are empty. How many people are sitting in the theater?",
        "The number of empty seats is {total} / 3 = {e}. So {total} - {e} = {result} people are sitting.",
        {"e": (10, 400)},
        lambda e: {"total": 3 * e, "result": 2 * e},
    ),
    Template(
        "{who} buys {k} bottles of juice at {p} dollars each. {friend} pays {f} dollars of the bill. How much "
        "is left for {who} to pay?",
        "The juice costs {k} * {p} = {c} dollars. {c} - {f} = {result} dollars are left.",
        {"k": (4, 12), "p": (3, 9), "f": (2, 11)},
        lambda k, p, f: {"c": k * p, "result": k * p - f},
    ),
    Template(
        "It takes {who} {a} minutes to walk to school and {b} minutes longer to walk back. How many minutes does "
        "{who} walk in a school week of 5 days?",
        "The way back takes {a} + {b} = {c} minutes. Each day it is {a} + {c} = {d} minutes, and {d} * 5 = "
        "{result}.",
        {"a": (6, 35), "b": (2, 12)},
        lambda a, b: {"c": a + b, "d": 2 * a + b, "result": 5 * (2 * a + b)},
    ),
)
