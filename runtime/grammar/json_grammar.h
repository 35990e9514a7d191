// Grammars of JSON texts: any object, or what a JSON Schema describes.
//
// Of JSON Schema: type (also a list), properties (written in their order), required, additionalProperties, items,
// minItems, maxItems, minLength, maxLength, enum, const, anyOf, allOf of one, $ref into the document, minimum and
// maximum (also exclusive) of integers, true and {}. Annotations (title, description, default, format, ...) are
// ignored. Every other keyword is refused by name: a text that ignores it could be wrong.
//
// Objects with declared properties get those only (and required ones); properties beyond them are never written.
// Between tokens of JSON stand at most a line break and 16 spaces, and numbers have at most 15 digits before and after
// the point, so that no output runs on forever without end.
#pragma once

#include <string_view>

#include "kernels/status.h"
#include "runtime/grammar/byte_grammar.h"

namespace latentmesh {

ByteGrammar JsonObjectGrammar();
// kInvalidArgument names the place in the schema ("#/properties/age/pattern") and the reason.
Result<ByteGrammar> JsonSchemaGrammar(std::string_view schema_json);

}  // namespace latentmesh
