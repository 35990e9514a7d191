// Renders a parsed template: a tree-walking interpreter with a budget of steps.
#pragma once

#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "runtime/text/jinja_ast.h"
#include "runtime/text/jinja_builtins.h"

namespace latentmesh::jinja {

// One rendering. Not thread-safe; the tree it renders may be shared.
class Interpreter {
 public:
  // `now`: what strftime_now formats, seconds since 1970, in local time.
  Interpreter(std::vector<std::pair<std::string, Value>> variables, int64_t now);
  // Namespaces may refer to each other in a ring; this breaks it.
  ~Interpreter();
  Interpreter(const Interpreter&) = delete;

  // Throws Error with the line.
  std::string Render(const Node& root);

 private:
  using Kind = Node::Kind;
  enum class Flow { kNext, kBreak, kContinue };
  struct Scope {
    std::unordered_map<std::string, Value> variables;
    Scope* parent = nullptr;
  };
  // Makes `scope` the current one for its lifetime.
  class Enter;

  Flow Execute(const Node& node);
  Flow ExecuteBlock(const Node& node);
  Flow ExecuteIf(const Node& node);
  Flow ExecuteFor(const Node& node);
  Flow ExecuteWith(const Node& node);
  void ExecuteSet(const Node& node);
  void ExecuteSetAttribute(const Node& node);
  void ExecuteSetBlock(const Node& node);
  void ExecuteFilterBlock(const Node& node);
  void DefineMacro(const Node& node);
  Value CallMacro(const Node& node, const Arguments& arguments);
  std::vector<Value> LoopItems(const Node& node);
  void Assign(const std::vector<std::string>& names, const Value& value);
  std::string Capture(const Node& body);
  Value FilterText(const Node& chain, std::string text);
  void Write(std::string_view text);

  Value Evaluate(const Node& node);
  Value EvaluateInner(const Node& node);
  Value EvaluateOptional(const Node* node) { return node ? Evaluate(*node) : Value(); }
  Value EvaluateList(const Node& node);
  Value EvaluateDict(const Node& node);
  Value EvaluateCall(const Node& node);
  Value EvaluateBinary(const Node& node);
  Value EvaluateCompare(const Node& node);
  Value EvaluateConditional(const Node& node);
  bool CompareOnce(const std::string& op, const Value& a, const Value& b);
  Arguments EvaluateArguments(const Node& node);
  Value Lookup(const std::string& name);
  void DefineGlobals();

  Budget budget_;
  int64_t now_;
  Scope root_;
  Scope* scope_ = &root_;
  std::string* out_ = nullptr;
  size_t written_ = 0;
  int depth_ = 0;
  int loops_ = 0;
  std::vector<Value> namespaces_;
};

}  // namespace latentmesh::jinja
