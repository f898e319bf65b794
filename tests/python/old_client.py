"""A gRPC client as old as the Go program, made from the contract's table alone.

usage: old_client.py TARGET    (host:port, or unix:PATH)

Lists, generates, lists, removes what it made, removes it once more, lists; each answer is one line
of JSON. It knows the fields that the contract names and no later ones, and reports the numbers of
unknown fields.
"""

import importlib
import json
import pathlib
import sys
import tempfile

import grpc
from google.protobuf import unknown_fields
from grpc_tools import protoc

PROTO = """
syntax = "proto3";
package proto;
service AdminService {
  rpc GenerateNewKeys(GenerateNewKeysRequest) returns (GenerateNewKeysResponse);
  rpc ListKeys(ListKeysRequest) returns (ListKeysResponse);
  rpc RemoveKey(RemoveKeyRequest) returns (RemoveKeyResponse);
}
message Key {
  string key_id = 1;
  string algorithm = 2;
  int64 created_at = 4;
}
message GenerateNewKeysRequest {}
message GenerateNewKeysResponse { Key key = 1; }
message ListKeysRequest {}
message ListKeysResponse { repeated Key keys = 1; }
message RemoveKeyRequest { string key_id = 1; }
message RemoveKeyResponse { repeated Key keys = 1; }
"""


def compiled():
    folder = tempfile.mkdtemp()
    path = pathlib.Path(folder, "contract.proto")
    path.write_text(PROTO)
    code = protoc.main(["protoc", f"-I{folder}", f"--python_out={folder}", f"--grpc_python_out={folder}", str(path)])
    assert code == 0, code
    sys.path.insert(0, folder)
    return importlib.import_module("contract_pb2"), importlib.import_module("contract_pb2_grpc")


def told(key):
    unknown = sorted(field.field_number for field in unknown_fields.UnknownFieldSet(key))
    return {"key_id": key.key_id, "algorithm": key.algorithm, "created_at": key.created_at, "unknown": unknown}


def say(step, call):
    try:
        answer = call()
    except grpc.RpcError as error:
        print(json.dumps({"step": step, "code": error.code().name, "details": error.details()}))
        return None
    print(json.dumps({"step": step, "keys": answer}))
    return answer


def main(target):
    messages, services = compiled()
    # Python uses the socket's path, percent-encoded, as the host name, which strict HTTP/2 servers
    # refuse.
    options = [("grpc.default_authority", "localhost")] if target.startswith("unix:") else []
    with grpc.insecure_channel(target, options=options) as channel:
        api = services.AdminServiceStub(channel)

        def keys():
            return [told(key) for key in api.ListKeys(messages.ListKeysRequest(), timeout=20).keys]

        def generate():
            return [told(api.GenerateNewKeys(messages.GenerateNewKeysRequest(), timeout=20).key)]

        def remove(kid):
            answer = api.RemoveKey(messages.RemoveKeyRequest(key_id=kid), timeout=20)
            return [told(key) for key in answer.keys]

        say("list", keys)
        made = say("generate", generate)
        say("list again", keys)
        kid = made[0]["key_id"] if made else "tb-1740172800"
        say("remove", lambda: remove(kid))
        say("remove again", lambda: remove(kid))
        say("list at last", keys)


main(sys.argv[1])
