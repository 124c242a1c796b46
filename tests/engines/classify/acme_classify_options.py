"""The options of the calculator, which the engine and the kernel know; protoc would make this module."""

from __future__ import annotations

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

file = descriptor_pb2.FileDescriptorProto(name="acme_classify.proto", package="acme", syntax="proto2")
message = file.message_type.add(name="ClassifyCalculatorOptions")
message.field.add(name="models_path", number=1, type="TYPE_STRING", label="LABEL_REQUIRED")
message.field.add(name="labels", number=2, type="TYPE_STRING", label="LABEL_REPEATED")
descriptor_pool.Default().Add(file)
added = descriptor_pool.Default().FindFileByName(file.name)
ClassifyCalculatorOptions = message_factory.GetMessageClass(added.message_types_by_name["ClassifyCalculatorOptions"])
