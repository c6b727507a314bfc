"""Makes the calls of gRPC that CALLS lists, one after the other or, by PARALLEL, all at once, and says how each ended.

Channels of different names are different connections. With HOLD, they stay open until there is a file of that name.
"""

import json
import os
import threading
import time

import grpc

OPTIONS = [
    ("grpc.use_local_subchannel_pool", 1),
    ("grpc.max_receive_message_length", -1),
    ("grpc.max_send_message_length", -1),
    ("grpc.enable_retries", 0),
]
channels = {}


def until(path):
    while not os.path.exists(path):
        time.sleep(0.005)


def make(call):
    channel, method = channels[call.get("channel", "a")], call["method"]
    messages = [message.encode() * call.get("repeat", 1) for message in call.get("messages", ["one"])]
    more = {"metadata": list(call.get("metadata", {}).items()), "timeout": call.get("timeout")}
    received = []
    arrived = threading.Semaphore(0)

    def turns():
        """The next message once the one before it has come back."""
        for at, message in enumerate(messages):
            if at > 0:
                arrived.acquire()
            yield message

    begun = time.monotonic()
    kind = call.get("kind", method)
    path = call.get("prefix", "") + "/sim.Echo/" + method
    try:
        if kind == "ClientStream":
            answer, rpc = channel.stream_unary(path).with_call(iter(messages), **more)
            received.append(answer)
        elif kind in ("Bidi", "ServerStream"):
            stub = channel.stream_stream(path) if kind == "Bidi" else channel.unary_stream(path)
            rpc = stub(turns() if kind == "Bidi" else messages[0], **more)
            if "cancel_on" in call:
                threading.Thread(target=lambda: (until(call["cancel_on"]), rpc.cancel())).start()
            for message in rpc:
                received.append(message)
                arrived.release()
        else:
            answer, rpc = channel.unary_unary(path).with_call(messages[0], **more)
            received.append(answer)
        code, details = rpc.code(), rpc.details()
    except grpc.RpcError as error:
        rpc, code, details = error, error.code(), error.details()
    pairs = lambda metadata: {name: value for name, value in metadata or () if isinstance(value, str)}
    return {
        "messages": [f"{len(m)} bytes" if len(m) > 100 else m.decode() for m in received],
        "code": code.name,
        "details": details,
        "header": pairs(rpc.initial_metadata()),
        "trailers": pairs(rpc.trailing_metadata()),
        "seconds": time.monotonic() - begun,
    }


calls = json.loads(os.environ["CALLS"])
for name in {call.get("channel", "a") for call in calls}:
    if authority := os.environ.get("CA"):
        more = [("grpc.ssl_target_name_override", "gateway.test")]
        credentials = grpc.ssl_channel_credentials(open(authority, "rb").read())
        channels[name] = grpc.secure_channel(os.environ["TARGET"], credentials, options=OPTIONS + more)
    else:
        channels[name] = grpc.insecure_channel(os.environ["TARGET"], options=OPTIONS)
results = [None] * len(calls)


def run(at):
    results[at] = make(calls[at])


if os.environ.get("PARALLEL"):
    threads = [threading.Thread(target=run, args=[at]) for at in range(len(calls))]
    [thread.start() for thread in threads]
    [thread.join() for thread in threads]
else:
    [run(at) for at in range(len(calls))]
if os.environ.get("HOLD"):
    open("held", "w").close()
    until(os.environ["HOLD"])
[channel.close() for channel in channels.values()]
print(json.dumps(results))
