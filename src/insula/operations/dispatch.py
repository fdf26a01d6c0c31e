"""From a request to the verb that fulfils it. Verbs are imported when first asked for, so that a quick one stays quick."""

from __future__ import annotations

import errno
import importlib
from collections.abc import Callable
from typing import Any, Final

from insula.errors import HostLacks
from insula.host.files import explain_os_error
from insula.model.requests import Request
from insula.operations.context import Context
from insula.operations.operation import Operation, Progress

# Facts about the caller's files, not bugs of ours.
_NO_ACCESS: Final = frozenset({errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EISDIR, errno.EIO})

# request type -> (module below insula.operations, function, verb as people say it)
_VERBS: Final[dict[str, tuple[str, str, str]]] = {
    "RunMachine": ("run", "run", "run"),
    "CreateMachine": ("create", "create", "create"),
    "StartMachine": ("start", "start", "start"),
    "StopMachine": ("stop", "stop", "stop"),
    "RestartMachine": ("restart", "restart", "restart"),
    "PauseMachine": ("pause", "pause", "pause"),
    "ResumeMachine": ("pause", "resume", "resume"),
    "DeleteMachine": ("delete", "delete", "delete"),
    "RenameMachine": ("rename", "rename", "rename"),
    "CreateSnapshot": ("snapshot", "create", "snapshot"),
    "ListSnapshots": ("snapshot", "list_snapshots", "snapshot list"),
    "ShowSnapshot": ("snapshot", "show", "snapshot show"),
    "DeleteSnapshot": ("snapshot", "delete", "snapshot delete"),
    "RestoreSnapshot": ("restore", "restore", "restore"),
    "ExportSnapshot": ("export", "export", "snapshot export"),
    "ImportSnapshot": ("importing", "import_snapshot", "snapshot import"),
    "ForkMachine": ("fork", "fork", "fork"),
    "SuspendMachine": ("suspend", "suspend", "suspend"),
    "CloneMachine": ("clone", "clone", "clone"),
    "WarmImage": ("warm", "make", "image warm make"),
    "RefreshWarmState": ("warm", "refresh", "image warm"),
    "ListWarmStates": ("warm", "list_states", "image warm list"),
    "DeleteWarmStates": ("warm", "delete", "image warm delete"),
    "SetSpares": ("spare", "set_count", "spare set"),
    "ListSpares": ("spare", "list_spares", "spare list"),
    "FillSpares": ("spare", "fill", "spare"),
    "MergeLayers": ("merge", "merge", "merge"),
    "CreateNetwork": ("network", "create", "network create"),
    "ListNetworks": ("network", "list_networks", "network list"),
    "ShowNetwork": ("network", "show", "network show"),
    "DeleteNetwork": ("network", "delete", "network delete"),
    "RepairNetworks": ("network", "repair", "network repair"),
    "AttachNetwork": ("attach", "attach", "network attach"),
    "DetachNetwork": ("attach", "detach", "network detach"),
    "SetLink": ("attach", "set_link", "network link"),
    "LimitMachine": ("limit", "limit", "limit"),
    "LimitNetwork": ("attach", "limit", "network limit"),
    "PublishPorts": ("ports", "publish", "publish"),
    "UnpublishPorts": ("ports", "unpublish", "unpublish"),
    "ListPorts": ("ports", "list_ports", "ports"),
    "SetFirewall": ("firewall", "change", "firewall"),
    "ShowFirewall": ("firewall", "show", "firewall show"),
    "CaptureTraffic": ("traffic", "capture", "capture"),
    "ShowTraffic": ("traffic", "show", "stats"),
    "ShowUsage": ("stats", "show_usage", "stats"),
    "WatchUsage": ("stats", "watch_usage", "top"),
    "GuardMachines": ("guard", "guard", "guard"),
    "ListMachines": ("look", "list_machines", "list"),
    "ShowMachine": ("look", "show_machine", "show"),
    "ShowSecurity": ("security", "show_security", "show"),
    "ExecMachine": ("execute", "execute", "exec"),
    "OpenConsole": ("console", "console", "console"),
    "CopyIn": ("copy", "copy_in", "copy"),
    "CopyOut": ("copy", "copy_out", "copy"),
    "ReadLogs": ("follow", "logs", "logs"),
    "ReadEvents": ("follow", "events", "events"),
    "BuildImage": ("image", "build", "image build"),
    "ListImages": ("image", "list_all", "image list"),
    "ShowImage": ("image", "show", "image show"),
    "DeleteImage": ("image", "delete", "image delete"),
    "PruneImages": ("image", "prune", "image prune"),
    "ShowDiskUsage": ("usage", "usage", "disk usage"),
    "ExamineHost": ("doctor", "doctor", "doctor"),
    "ProbeJail": ("probe", "probe", "doctor"),
    "SettleMachine": ("recover", "settle", "settle"),
}


def begin(request: Request, listener: Callable[[Progress], None] | None = None) -> Operation:
    """The operation that `perform` would do ``request`` as, for callers who want to see it while it runs, or afterwards."""
    return Operation(_VERBS[type(request).__name__][2], getattr(request, "name", ""), listener)


def perform(
    context: Context,
    request: Request,
    streams: Any = None,
    listener: Callable[[Progress], None] | None = None,
    operation: Operation | None = None,
) -> Any:
    """Do what ``request`` asks for and return the verb's result.

    ``streams`` is what flows beside the request, where the verb has any. Raises InsulaError and nothing else, bugs aside.
    """
    module, function, _ = _VERBS[type(request).__name__]
    work = getattr(importlib.import_module(f"insula.operations.{module}"), function)
    operation = operation or begin(request, listener)
    try:
        if streams is None:
            return work(context, request, operation)
        return work(context, request, operation, streams)
    except OSError as cause:
        explained = explain_os_error(cause, context.home.root / "x")
        if explained is not cause:
            raise explained from cause
        if cause.errno in _NO_ACCESS:
            where = cause.filename or context.home.root
            raise HostLacks(
                f"{where}: {cause.strerror}", code="no_access", hint="see who owns it; INSULA_HOME names another folder"
            ) from cause
        raise
