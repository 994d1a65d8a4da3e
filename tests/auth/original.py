"""The original's model and policy, byte for byte, and others."""

from __future__ import annotations

MODEL = b"""# START: model
[request_definition]
r = sub, obj, act

[policy_definition]
p = sub, obj, act

[policy_effect]
e = some(where (p.eft == allow))

[matchers]
m = r.sub == p.sub && r.obj == p.obj && r.act == p.act
"""
POLICY = b"""p, root, *, produce
p, root, *, consume
"""
ROLES_MODEL = b"""[request_definition]
r = sub, obj, act

[policy_definition]
p = sub, obj, act

[role_definition]
g = _, _

[policy_effect]
e = some(where (p.eft == allow))

[matchers]
m = g(r.sub, p.sub) && keyMatch(r.obj, p.obj) && r.act == p.act
"""
ROLES_POLICY = b"""# Writers of orders, and who may change the cluster.
p, writers, orders*, produce
p, ops, *, admin

g, alice, writers
g, bob, ops
"""
DENYING_MODEL = b"""[request_definition]
r = sub, obj, act

[policy_definition]
p = sub, obj, act, eft

[policy_effect]
e = some(where (p.eft == allow)) && !some(where (p.eft == deny))

[matchers]
m = r.sub == p.sub && (r.obj == p.obj || p.obj == "*") && r.act == p.act
"""
DENYING_POLICY = b"""p, eve, *, consume, allow
p, eve, secrets, consume, deny
"""


def files(model: bytes, policy: bytes) -> dict[str, bytes]:
    return {"acl-model-file": model, "acl-policy-file": policy}
