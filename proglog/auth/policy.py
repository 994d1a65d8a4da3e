"""What clients may do, as a Casbin model and policy say: the original's files, or one's own.

pycasbin takes nearly anything: a row that is too short breaks every later decision, and a misspelt
action, a line without commas or a byte order mark drops a rule without a word. So both files are
judged before it sees them.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Mapping
from typing import Any

import casbin
from casbin.model import Model
from casbin.persist.adapters import StringAdapter

from proglog import limits
from proglog.auth.access import ACTIONS, ADMIN, CONSUME, DESCRIBE, EVERYTHING, PRODUCE
from proglog.errors import ConfigurationError, quoted

MODEL_FILE, POLICY_FILE = "acl-model-file", "acl-policy-file"
_REQUEST = ["r_sub", "r_obj", "r_act"]
_ALLOW_ONLY = "some(where (p_eft == allow))"
_EXACT_ACTION = re.compile(r"\br_act\s*==\s*p_act\b")
_STRANGER = "a stranger to this policy"


class Policy:
    """One version of both files. Its decisions are cached with it, and end with it."""

    def __init__(self, contents: Mapping[str, bytes]) -> None:
        """Raises ConfigurationError, which names the file, the line, and what would do."""
        model = _text(contents, MODEL_FILE)
        policy = _text(contents, POLICY_FILE)
        made = _read_model(model)
        rules = list(_rules(policy, made))
        self.version = hashlib.sha256(model.encode() + b"\0" + policy.encode()).hexdigest()[:16]
        self.rules = len(rules)
        # With a rule that denies, a `*` that is allowed would lead round a log that is denied.
        self._falls_back = made.model["e"]["e"].value == _ALLOW_ONLY
        self._decided: dict[tuple[str, str, str], bool] = {}
        try:
            self._enforcer = casbin.Enforcer(made, StringAdapter(policy))
            for subject in (rules[0][1], rules[-1][1], _STRANGER):
                self._enforcer.enforce(subject, EVERYTHING, PRODUCE)
        except Exception as error:  # noqa: BLE001  # of whatever kind: pycasbin has none of its own
            raise ConfigurationError(f"{MODEL_FILE} and {POLICY_FILE}: {error}") from None

    def known(self, subject: str, action: str, name: str) -> bool | None:
        """What was decided before; None if it was not."""
        return self._decided.get((subject, action, name))

    def decide(self, subject: str, action: str, name: str) -> bool:
        """Whether a subject may. Takes milliseconds for each thousand rules: not for the loop.
        Raises whatever the model's functions raise."""
        actions = (DESCRIBE, PRODUCE, CONSUME, ADMIN) if action == DESCRIBE else (action,)
        names = dict.fromkeys((name, EVERYTHING)) if self._falls_back else (name,)
        return any(
            self._enforcer.enforce(subject, each, some) is True
            for each in names
            for some in actions
        )

    def remember(self, subject: str, action: str, name: str, *, allowed: bool) -> None:
        """For `known`."""
        if len(self._decided) >= limits.decisions_max:
            self._decided.clear()
        self._decided[(subject, action, name)] = allowed


def _text(contents: Mapping[str, bytes], name: str) -> str:
    try:
        text = contents[name].decode("utf-8")
    except UnicodeDecodeError:
        raise ConfigurationError(f"{name} is not UTF-8", setting=name) from None
    if text.startswith("\ufeff"):
        raise ConfigurationError(f"{name} begins with a byte order mark: remove it", setting=name)
    return text.replace("\r\n", "\n")


def _read_model(text: str) -> Any:
    model = Model()
    try:
        model.load_model_from_text(text)
        request, rule = (model.model[key][key].tokens for key in ("r", "p"))
        matcher, _ = (model.model[key][key].value for key in ("m", "e"))
    except Exception as error:  # noqa: BLE001  # see above
        raise _wrong_model(f"is no Casbin model: {error}") from None
    if request != _REQUEST:
        raise _wrong_model("must define requests as `r = sub, obj, act`")
    if rule[:3] != ["p_sub", "p_obj", "p_act"]:
        raise _wrong_model("must define rules as `p = sub, obj, act`, or with `eft` behind")
    if "eval(" in matcher:
        raise _wrong_model("has a matcher with eval(): rules would be programs")
    return model


def _rules(text: str, model: Any) -> Iterator[list[str]]:
    """The rules and roles, at least one rule."""
    size = {"p": len(model.model["p"]["p"].tokens)}
    if "g" in model.model:
        size["g"] = model.model["g"]["g"].value.count("_")
    exact = _EXACT_ACTION.search(model.model["m"]["m"].value) is not None
    rules, number = [], 0
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip() or line.strip().startswith("#"):
            continue
        fields = [field.strip() for field in line.split(",")]
        if why := _why_no_rule(fields, size, exact=exact):
            raise ConfigurationError(
                f"{POLICY_FILE} line {number}: {why}", setting=POLICY_FILE, line=number
            )
        rules.append(fields)
        if len(rules) > limits.policy_rules_max:
            raise ConfigurationError(f"{POLICY_FILE} holds over {limits.policy_rules_max} rules")
    if not any(fields[0] == "p" for fields in rules):
        raise ConfigurationError(f"{POLICY_FILE} holds no rule: nobody could do anything")
    yield from (fields for fields in rules if fields[0] == "p")


def _why_no_rule(fields: list[str], size: Mapping[str, int], *, exact: bool) -> str:
    kind = fields[0]
    if kind not in size:
        return f"it begins with {quoted(kind)}: expected {' or '.join(size)}"
    if len(fields) - 1 != size[kind]:
        return f"it has {len(fields) - 1} fields behind {kind}: expected {size[kind]}"
    if not all(fields) or any('"' in field or "'" in field for field in fields):
        return "a field is empty or in quotation marks"
    actions = ACTIONS if exact else (*ACTIONS, EVERYTHING)
    if kind == "p" and fields[3] not in actions:
        return f"there is no action {quoted(fields[3])}: expected {', '.join(actions)}"
    if kind == "p" and len(fields) > 4 and fields[4] not in {"allow", "deny"}:
        return f"the effect is {quoted(fields[4])}: expected allow or deny"
    return ""


def _wrong_model(why: str) -> ConfigurationError:
    return ConfigurationError(f"{MODEL_FILE} {why}", setting=MODEL_FILE)
