// The syntax tree of a Jinja template.
#pragma once

#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "runtime/text/jinja_value.h"

namespace latentmesh::jinja {

struct Node;
using NodePtr = std::unique_ptr<Node>;

struct Node {
  enum class Kind {
    // Expressions: children, and what `text` and `names` hold.
    kLiteral,      // value
    kName,         // text
    kList, kTuple, // items
    kDict,         // key, value, key, value, ...
    kAttribute,    // object; text
    kSubscript,    // object, index
    kSlice,        // object, start, stop, step (null where absent)
    kCall,         // callee, arguments...; names[i] of argument i, empty for a positional one
    kFilter,       // input, arguments...; text, names
    kTest,         // input, arguments...; text, names
    kNot, kNegate, // operand
    kBinary,       // left, right; text is the operator
    kAnd, kOr,     // left, right
    kCompare,      // first, second, ...; names are the operators between them
    kConditional,  // condition, then, otherwise (null where absent)
    // Statements.
    kBlock,        // statements
    kText,         // text
    kOutput,       // expression
    kIf,           // condition, body, condition, body, ..., [else body]
    kFor,          // iterable, body, else body or null, filter or null; names are the targets
    kSet,          // expression; names are the targets
    kSetAttribute, // expression; names: object, attribute
    kSetBlock,     // body, filter chain over a kName "" or null; names: target
    kMacro,        // body, defaults... (null where absent); text, names are the parameters
    kWith,         // body, values...; names
    kFilterBlock,  // body, filter chain over a kName ""
    kBreak, kContinue,
  };

  Kind kind;
  int line = 0;
  std::string text;
  Value value;
  std::vector<std::string> names;
  std::vector<NodePtr> children;
  int depth = 1;
};

// Parses a template; throws Error with the construct and the line for what the subset lacks.
NodePtr ParseTemplate(std::string_view source);

}  // namespace latentmesh::jinja
