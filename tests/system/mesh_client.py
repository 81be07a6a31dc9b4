"""Calls mmesh.ModelMesh as a client does that was made from the published fields: registers a model, uses it, removes it.

Nothing here is generated from our own .proto file: numbers and names are the published ones.
"""
import argparse

import grpc
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

STRING, BOOL, UINT64, ENUM, MESSAGE, BYTES = 9, 8, 4, 14, 11, 12
MESSAGES = {
    "ModelInfo": [("type", 1, STRING), ("path", 2, STRING), ("key", 3, STRING)],
    "RegisterModelRequest": [
        ("modelId", 1, STRING), ("modelInfo", 2, "ModelInfo"), ("loadNow", 3, BOOL), ("sync", 4, BOOL), ("lastUsedTime", 5, UINT64),
    ],
    "UnregisterModelRequest": [("modelId", 1, STRING)],
    "UnregisterModelResponse": [],
    "GetStatusRequest": [("modelId", 1, STRING)],
    "EnsureLoadedRequest": [("modelId", 1, STRING), ("lastUsedTime", 2, UINT64), ("sync", 4, BOOL)],
    "ModelCopyInfo": [("location", 1, STRING), ("copyStatus", 2, ENUM), ("time", 3, UINT64)],
    "ModelStatusInfo": [("status", 1, ENUM), ("errors", 2, [STRING]), ("modelCopyInfos", 3, ["ModelCopyInfo"])],
    "SetVModelRequest": [
        ("vModelId", 1, STRING), ("targetModelId", 2, STRING), ("updateOnly", 3, BOOL), ("modelInfo", 4, "ModelInfo"),
        ("autoDeleteTargetModel", 5, BOOL), ("loadNow", 6, BOOL), ("force", 7, BOOL), ("sync", 8, BOOL),
        ("expectedTargetModelId", 9, STRING), ("owner", 10, STRING),
    ],
    "GetVModelStatusRequest": [("vModelId", 1, STRING), ("owner", 2, STRING)],
    "VModelStatusInfo": [
        ("status", 1, ENUM), ("activeModelId", 2, STRING), ("targetModelId", 3, STRING), ("activeModelStatus", 4, "ModelStatusInfo"),
        ("targetModelStatus", 5, "ModelStatusInfo"), ("owner", 6, STRING),
    ],
}
# What of grpc.reflection.v1.ServerReflection is asked for here.
REFLECTION = {
    "ReflectionRequest": [("file_containing_symbol", 4, STRING), ("list_services", 7, STRING)],
    "Files": [("file", 1, [BYTES])],
    "Service": [("name", 1, STRING)],
    "Services": [("service", 1, ["Service"])],
    "ReflectionResponse": [("files", 4, "Files"), ("list", 6, "Services")],
}
STATUSES = ["NOT_FOUND", "NOT_LOADED", "LOADING", "LOADED", "LOADING_FAILED", "UNKNOWN"]
VSTATUSES = ["NOT_FOUND", "DEFINED", "TRANSITIONING", "TRANSITION_FAILED", "", "UNKNOWN"]


def classes():
    """A class for each message. Enums are read as numbers, which is what they are on the wire."""
    file = descriptor_pb2.FileDescriptorProto(name="by_hand.proto", package="by_hand", syntax="proto3")
    every = MESSAGES | REFLECTION
    for name, fields in every.items():
        message = file.message_type.add(name=name)
        for field, number, kind in fields:
            repeated, kind = (True, kind[0]) if isinstance(kind, list) else (False, kind)
            added = message.field.add(name=field, number=number, label=3 if repeated else 1)
            if isinstance(kind, str):
                added.type, added.type_name = MESSAGE, ".by_hand." + kind
            else:
                added.type = 13 if kind == ENUM else kind
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return {name: message_factory.GetMessageClass(pool.FindMessageTypeByName("by_hand." + name)) for name in every}


def reflected(channel, made):
    """The services that the server lists, and the fields that it says the published messages have."""
    asked = [made["ReflectionRequest"](list_services="*"), made["ReflectionRequest"](file_containing_symbol="mmesh.ModelMesh")]
    path = "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo"
    stub = channel.stream_stream(path, request_serializer=lambda message: message.SerializeToString(), response_deserializer=made["ReflectionResponse"].FromString)
    listed, files = stub(iter(asked), timeout=30)
    files = [descriptor_pb2.FileDescriptorProto.FromString(file) for file in files.files.file]
    fields = {}

    def gather(messages):
        for message in messages:
            fields[message.name] = {(field.name, field.number) for field in message.field}
            gather(message.nested_type)

    for file in files:
        gather(file.message_type)
    published = {name: {(field, number) for field, number, _ in wanted} for name, wanted in MESSAGES.items()}
    return sorted(service.name for service in listed.list.service), published.items() <= fields.items()


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--grpc", required=True)
    args = parser.parse_args()
    made = classes()
    channel = grpc.insecure_channel(args.grpc)

    def call(method, request, answer, service="mmesh.ModelMesh"):
        path = f"/{service}/{method}"
        stub = channel.unary_unary(path, request_serializer=lambda message: message.SerializeToString(), response_deserializer=made[answer].FromString)
        return stub(request, timeout=30)

    services, agrees = reflected(channel, made)
    print("reflected:", "mmesh.ModelMesh" in services, agrees)
    info = made["ModelInfo"](type="mt:onnx", path="iris", key='{"storage_key": "quickstart"}')
    status = call("registerModel", made["RegisterModelRequest"](modelId="by/hand", modelInfo=info, loadNow=True, sync=True), "ModelStatusInfo")
    copy = status.modelCopyInfos[0]
    print("registered:", STATUSES[status.status], STATUSES[copy.copyStatus], bool(copy.location), copy.time > 1_700_000_000_000)
    request = made["SetVModelRequest"](vModelId="by hand", targetModelId="by/hand", owner="python", expectedTargetModelId="by/hand")
    name = call("setVModel", request, "VModelStatusInfo")
    print("set:", VSTATUSES[name.status], name.activeModelId, name.targetModelId, name.owner, STATUSES[name.activeModelStatus.status])
    try:
        call("unregisterModel", made["UnregisterModelRequest"](modelId="by/hand"), "UnregisterModelResponse")
    except grpc.RpcError as fault:
        print("unregister:", fault.code().name)
    other = made["ModelInfo"](type="mt:onnx", path="nowhere", key='{"storage_key": "quickstart"}')
    request = made["SetVModelRequest"](vModelId="by hand", targetModelId="bad", modelInfo=other, owner="python", sync=True, autoDeleteTargetModel=True)
    name = call("setVModel", request, "VModelStatusInfo")
    print("moved:", VSTATUSES[name.status], name.activeModelId, name.targetModelId, STATUSES[name.targetModelStatus.status], len(name.targetModelStatus.errors))
    gone = call("getModelStatus", made["GetStatusRequest"](modelId="***GETSTATE***"), "ModelStatusInfo", "com.ibm.watson.tas.proto.TasRuntime")
    print("hidden:", STATUSES[gone.status], len(gone.errors))


if __name__ == "__main__":
    main()
