"""For mypy: actor classes and their methods, checked. Runs inside mypy; `plugins = ["ray.mypy_plugin"]` turns it on.

mypy itself applies no decorators to classes and knows no type for "the methods of T, each with a .remote": so here

* a class decorated with `@ray.remote` or `@ray.remote(...)` gets `remote`, which takes the arguments of `__init__` and
  returns an ActorHandle of it, `options`, and `bind`;
* a method of an ActorHandle has `.remote`, which takes the method's arguments and returns an ObjectRef of its result.

Each argument may be a ref to a value of its type in place of the value.
"""

from __future__ import annotations

from typing import Callable

from mypy.checker import TypeChecker
from mypy.nodes import ARG_STAR, ARG_STAR2, Argument, FuncDef, MypyFile, TypeInfo, Var
from mypy.plugin import AttributeContext, ClassDefContext, Plugin
from mypy.plugins.common import add_method_to_class
from mypy.typeops import bind_self, make_simplified_union
from mypy.types import (
    AnyType,
    CallableType,
    FunctionLike,
    Instance,
    NoneType,
    Parameters,
    Type,
    TypeOfAny,
    get_proper_type,
)
from mypy.typevars import fill_typevars

_REMOTE = "ray.api.remote"
_HANDLE = "ray.actor.ActorHandle"
_CLASS = "ray.actor.ActorClass"
_NODE = "ray.dag.class_node.ClassNode"
_REF = "ray._native.references.ObjectRef"
_GENERATOR = "ray._core.engine.ObjectRefGenerator"
_METHOD = "ray._typing.TypedMethod"
_ITERATORS = ("typing.Iterator", "typing.Iterable", "typing.Generator", "typing.AsyncIterator", "typing.AsyncGenerator")
# Every actor can be asked these.
_OF_EVERY_ACTOR = ("__ray_ready__", "__ray_call__", "__ray_terminate__")

Lookup = Callable[[str, "list[Type]"], "Instance | None"]


class RayPlugin(Plugin):
    def get_additional_deps(self, file: MypyFile) -> list[tuple[int, str, int]]:
        if not any(name == "ray" or name.startswith("ray.") for name in _imported(file)):
            return []
        return [(10, "ray._typing", -1), (10, "ray.actor", -1), (10, "ray.dag.class_node", -1)]

    def get_class_decorator_hook_2(self, fullname: str) -> Callable[[ClassDefContext], bool] | None:
        return _complete_class if fullname == _REMOTE else None

    def get_attribute_hook(self, fullname: str) -> Callable[[AttributeContext], Type] | None:
        owner, _, name = fullname.rpartition(".")
        if owner != _HANDLE or name in _OF_EVERY_ACTOR:
            return None
        return lambda context: _method_of(context, name)


def _imported(file: MypyFile) -> list[str]:
    from mypy.nodes import Import, ImportAll, ImportFrom

    names: list[str] = []
    for statement in file.imports:
        if isinstance(statement, Import):
            names += [name for name, _ in statement.ids]
        elif isinstance(statement, (ImportFrom, ImportAll)):
            names.append(statement.id)
    return names


# --- classes -----------------------------------------------------------------------------------------------------


def _complete_class(context: ClassDefContext) -> bool:
    info, api = context.cls.info, context.api
    if "remote" in info.names:
        return True
    own = fill_typevars(info)
    if not isinstance(own, Instance):  # a named tuple: no actor
        return True

    def lookup(name: str, args: list[Type]) -> Instance | None:
        return api.named_type_or_none(name, args)

    handle, made, node = lookup(_HANDLE, [own]), lookup(_CLASS, [own]), lookup(_NODE, [own])
    if handle is None or made is None or node is None:  # ray's own modules are not there yet
        return False
    init = info.get_method("__init__")
    if isinstance(init, FuncDef) and init.info.fullname != "builtins.object":
        arguments = _arguments_of(init, lookup)
    elif init is None or init.info.fullname == "builtins.object":
        arguments = []
    else:
        arguments = _any_arguments()
    add_method_to_class(api, context.cls, "remote", arguments, handle, is_staticmethod=True)
    any_type = AnyType(TypeOfAny.explicit)
    anything = Argument(Var("options", any_type), any_type, None, ARG_STAR2)
    add_method_to_class(api, context.cls, "options", [anything], made, is_staticmethod=True)
    # Nodes may stand for the arguments, each of which then has the type of what its node gives: they go unchecked.
    add_method_to_class(api, context.cls, "bind", _any_arguments(), node, is_staticmethod=True)
    return True


def _arguments_of(init: FuncDef, lookup: Lookup) -> list[Argument]:
    arguments = []
    kinds = init.type.arg_types if isinstance(init.type, CallableType) else [AnyType(TypeOfAny.unannotated)] * 1000
    for argument, given in list(zip(init.arguments, kinds))[1:]:
        kind = _or_ref(given, lookup)
        variable = Var(argument.variable.name, kind)
        arguments.append(Argument(variable, kind, argument.initializer, argument.kind, argument.pos_only))
    return arguments


def _any_arguments() -> list[Argument]:
    any_type = AnyType(TypeOfAny.explicit)
    return [
        Argument(Var("args", any_type), any_type, None, ARG_STAR),
        Argument(Var("kwargs", any_type), any_type, None, ARG_STAR2),
    ]


def _or_ref(kind: Type, lookup: Lookup) -> Type:
    ref = lookup(_REF, [kind])
    return kind if ref is None else make_simplified_union([kind, ref])


# --- methods -----------------------------------------------------------------------------------------------------


def _method_of(context: AttributeContext, name: str) -> Type:
    handle = get_proper_type(context.type)
    if not isinstance(handle, Instance) or not handle.args:
        return context.default_attr_type
    actor = get_proper_type(handle.args[0])
    if not isinstance(actor, Instance):  # ActorHandle[Any]
        return context.default_attr_type
    found = actor.type.get(name)
    if found is None or found.type is None:
        if not _is_known(actor.type, name):
            context.api.fail(f'actor class "{actor.type.name}" has no method "{name}"', context.context)
        return context.default_attr_type
    function = get_proper_type(found.type)
    if not isinstance(function, FunctionLike):
        return context.default_attr_type
    node = found.node
    if not (isinstance(node, FuncDef) and node.is_static):
        function = bind_self(function, actor)
    if not isinstance(function, CallableType):  # overloaded
        return context.default_attr_type

    checker = context.api
    assert isinstance(checker, TypeChecker)

    def lookup(name: str, args: list[Type]) -> Instance | None:
        # By way of the modules: named_generic_type finds only what the checked file's packages list as attributes.
        module, _, own = name.rpartition(".")
        node = checker.modules[module].names[own].node
        return Instance(node, args) if isinstance(node, TypeInfo) else None

    parameters = Parameters(
        [_or_ref(kind, lookup) for kind in function.arg_types],
        function.arg_kinds,
        function.arg_names,
        variables=function.variables,
    )
    out = _returned(function, lookup)
    return context.default_attr_type if out is None else lookup(_METHOD, [parameters, out]) or context.default_attr_type


def _is_known(actor: TypeInfo, name: str) -> bool:
    """Whether some class of it has a __getattr__, or is not known in full."""
    return actor.fallback_to_any or actor.has_readable_member("__getattr__") or actor.get(name) is not None


def _returned(function: CallableType, lookup: Lookup) -> Type | None:
    result = get_proper_type(function.ret_type)
    if isinstance(result, Instance):
        if result.type.fullname in ("typing.Coroutine", "typing.Awaitable"):
            return lookup(_REF, [result.args[-1]])
        if result.type.fullname in _ITERATORS:
            return lookup(_GENERATOR, [result.args[0]])
    return lookup(_REF, [NoneType() if isinstance(result, NoneType) else function.ret_type])


def plugin(version: str) -> type[Plugin]:
    """What mypy asks for."""
    return RayPlugin


__all__ = ["plugin"]
