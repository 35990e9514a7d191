#include "runtime/text/jinja_eval.h"

#include <algorithm>
#include <utility>

#include "runtime/text/jinja_operators.h"

namespace latentmesh::jinja {
namespace {

constexpr int64_t kMaxSteps = 20'000'000;
constexpr size_t kMaxOutput = 64u << 20;  // bytes
constexpr int kMaxDepth = 1200;           // of nested evaluations, over macro calls

}  // namespace

class Interpreter::Enter {
 public:
  Enter(Interpreter& interpreter, Scope& scope, Scope* parent) : interpreter_(interpreter), old_(interpreter.scope_) {
    scope.parent = parent;
    interpreter_.scope_ = &scope;
  }
  ~Enter() { interpreter_.scope_ = old_; }
  Enter(const Enter&) = delete;

 private:
  Interpreter& interpreter_;
  Scope* old_;
};

Interpreter::Interpreter(std::vector<std::pair<std::string, Value>> variables, int64_t now)
    : budget_(kMaxSteps), now_(now) {
  DefineGlobals();
  for (auto& [name, value] : variables) root_.variables.insert_or_assign(name, std::move(value));
}

Interpreter::~Interpreter() {
  for (const Value& v : namespaces_) v.if_dict()->entries.clear();
}

std::string Interpreter::Render(const Node& root) { return Capture(root); }

void Interpreter::Write(std::string_view text) {
  written_ += text.size();
  if (written_ > kMaxOutput) throw Error("the template writes too much");
  out_->append(text);
}

std::string Interpreter::Capture(const Node& body) {
  std::string text;
  std::string* const outer = std::exchange(out_, &text);
  try {
    Execute(body);
  } catch (...) {
    out_ = outer;
    throw;
  }
  out_ = outer;
  return text;
}

Interpreter::Flow Interpreter::Execute(const Node& node) {
  budget_.Charge(1);
  try {
    switch (node.kind) {
      case Kind::kBlock: return ExecuteBlock(node);
      case Kind::kText: Write(node.text); break;
      case Kind::kOutput: Write(ToText(Evaluate(*node.children[0]))); break;
      case Kind::kIf: return ExecuteIf(node);
      case Kind::kFor: return ExecuteFor(node);
      case Kind::kWith: return ExecuteWith(node);
      case Kind::kSet: ExecuteSet(node); break;
      case Kind::kSetAttribute: ExecuteSetAttribute(node); break;
      case Kind::kSetBlock: ExecuteSetBlock(node); break;
      case Kind::kFilterBlock: ExecuteFilterBlock(node); break;
      case Kind::kMacro: DefineMacro(node); break;
      case Kind::kBreak: return Flow::kBreak;
      case Kind::kContinue: return Flow::kContinue;
      default: throw Error("an expression where a statement belongs");
    }
  } catch (Error& error) {
    if (error.line == 0) error.line = node.line;
    throw;
  }
  return Flow::kNext;
}

Interpreter::Flow Interpreter::ExecuteBlock(const Node& node) {
  for (const NodePtr& statement : node.children) {
    const Flow flow = Execute(*statement);
    if (flow != Flow::kNext) return flow;
  }
  return Flow::kNext;
}

Interpreter::Flow Interpreter::ExecuteIf(const Node& node) {
  size_t i = 0;
  for (; i + 1 < node.children.size(); i += 2) {
    if (Truth(Evaluate(*node.children[i]))) return Execute(*node.children[i + 1]);
  }
  return i < node.children.size() ? Execute(*node.children[i]) : Flow::kNext;
}

std::vector<Value> Interpreter::LoopItems(const Node& node) {
  std::vector<Value> items = Elements(Evaluate(*node.children[0]));
  budget_.ChargeSize(items.size() * 16);
  const Node* filter = node.children[3].get();
  if (!filter) return items;
  std::vector<Value> kept;
  for (Value& item : items) {
    Scope scope;
    const Enter enter(*this, scope, scope_);
    Assign(node.names, item);
    if (Truth(Evaluate(*filter))) kept.push_back(std::move(item));
  }
  return kept;
}

Interpreter::Flow Interpreter::ExecuteFor(const Node& node) {
  auto items = std::make_shared<List>();
  items->items = LoopItems(node);
  if (items->items.empty()) return node.children[2] ? Execute(*node.children[2]) : Flow::kNext;
  ++loops_;
  for (size_t i = 0; i < items->items.size(); ++i) {
    auto loop = std::make_shared<Loop>();
    loop->items = items;
    loop->index = i;
    loop->depth = loops_;
    Scope scope;
    const Enter enter(*this, scope, scope_);
    scope.variables["loop"] = Value::MakeLoop(std::move(loop));
    Assign(node.names, items->items[i]);
    if (Execute(*node.children[1]) == Flow::kBreak) break;
  }
  --loops_;
  return Flow::kNext;
}

Interpreter::Flow Interpreter::ExecuteWith(const Node& node) {
  Scope scope;
  for (size_t i = 0; i < node.names.size(); ++i) scope.variables[node.names[i]] = Evaluate(*node.children[i + 1]);
  const Enter enter(*this, scope, scope_);
  return Execute(*node.children[0]);
}

void Interpreter::Assign(const std::vector<std::string>& names, const Value& value) {
  if (names.size() == 1) {
    scope_->variables.insert_or_assign(names[0], value);
    return;
  }
  const std::vector<Value> parts = Elements(value);
  if (parts.size() != names.size()) {
    throw Error("cannot unpack " + std::to_string(parts.size()) + " values into " + std::to_string(names.size()) +
                " names");
  }
  for (size_t i = 0; i < names.size(); ++i) scope_->variables.insert_or_assign(names[i], parts[i]);
}

void Interpreter::ExecuteSet(const Node& node) { Assign(node.names, Evaluate(*node.children[0])); }

void Interpreter::ExecuteSetAttribute(const Node& node) {
  const Value target = Lookup(node.names[0]);
  Dict* dict = target.if_dict();
  if (!dict || !dict->is_namespace) {
    throw Error("cannot set an attribute of '" + node.names[0] + "': it is no namespace");
  }
  dict->Set(node.names[1], Evaluate(*node.children[0]));
}

void Interpreter::ExecuteSetBlock(const Node& node) {
  Scope scope;
  std::string text;
  {
    const Enter enter(*this, scope, scope_);
    text = Capture(*node.children[0]);
  }
  const Node* filters = node.children[1].get();
  Assign(node.names, filters ? FilterText(*filters, std::move(text)) : Value(std::move(text)));
}

void Interpreter::ExecuteFilterBlock(const Node& node) {
  Write(ToText(FilterText(*node.children[1], Capture(*node.children[0]))));
}

// A filter chain starts from the variable with the empty name.
Value Interpreter::FilterText(const Node& chain, std::string text) {
  Scope scope;
  const Enter enter(*this, scope, scope_);
  scope.variables[""] = Value(std::move(text));
  return Evaluate(chain);
}

void Interpreter::DefineMacro(const Node& node) {
  scope_->variables.insert_or_assign(
      node.text, Value::MakeFunction([this, &node](const Arguments& arguments) { return CallMacro(node, arguments); }));
}

Value Interpreter::CallMacro(const Node& node, const Arguments& arguments) {
  if (arguments.positional.size() > node.names.size()) throw Error("too many arguments for macro '" + node.text + "'");
  Scope scope;
  const Enter enter(*this, scope, &root_);
  for (const auto& [name, value] : arguments.named) {
    if (std::find(node.names.begin(), node.names.end(), name) == node.names.end()) {
      throw Error("macro '" + node.text + "' has no parameter '" + name + "'");
    }
  }
  for (size_t i = 0; i < node.names.size(); ++i) {
    const Value* given = arguments.Find(i, node.names[i]);
    const Node* fallback = node.children[i + 1].get();
    Value value = given      ? *given
                  : fallback ? Evaluate(*fallback)
                             : Value::MakeUndefined("parameter '" + node.names[i] + "' was not provided");
    scope.variables.insert_or_assign(node.names[i], std::move(value));
  }
  return Capture(*node.children[0]);
}

Value Interpreter::Lookup(const std::string& name) {
  for (const Scope* scope = scope_; scope; scope = scope->parent) {
    const auto found = scope->variables.find(name);
    if (found != scope->variables.end()) return found->second;
  }
  return Value::MakeUndefined("'" + name + "' is undefined");
}

Value Interpreter::Evaluate(const Node& node) {
  budget_.Charge(1);
  if (++depth_ > kMaxDepth) throw Error("the template calls itself too deeply", node.line);
  try {
    Value value = EvaluateInner(node);
    --depth_;
    return value;
  } catch (Error& error) {
    if (error.line == 0) error.line = node.line;
    throw;
  }
}

Value Interpreter::EvaluateInner(const Node& node) {
  const auto child = [&](size_t i) { return Evaluate(*node.children[i]); };
  switch (node.kind) {
    case Kind::kLiteral: return node.value;
    case Kind::kName: return Lookup(node.text);
    case Kind::kList:
    case Kind::kTuple: return EvaluateList(node);
    case Kind::kDict: return EvaluateDict(node);
    case Kind::kAttribute: return GetAttribute(child(0), node.text, budget_);
    case Kind::kSubscript: {
      const Value object = child(0);
      return GetItem(object, child(1), budget_);
    }
    case Kind::kSlice: {
      const Value object = child(0), start = EvaluateOptional(node.children[1].get());
      const Value stop = EvaluateOptional(node.children[2].get());
      return Slice(object, start, stop, EvaluateOptional(node.children[3].get()));
    }
    case Kind::kCall: return EvaluateCall(node);
    case Kind::kFilter: {
      const Value input = child(0);
      return ApplyFilter(node.text, input, EvaluateArguments(node), budget_);
    }
    case Kind::kTest: {
      const Value input = child(0);
      return ApplyTest(node.text, input, EvaluateArguments(node));
    }
    case Kind::kNot: return !Truth(child(0));
    case Kind::kNegate: return Negate(child(0));
    case Kind::kBinary: return EvaluateBinary(node);
    case Kind::kAnd: {
      const Value left = child(0);
      return Truth(left) ? child(1) : left;
    }
    case Kind::kOr: {
      const Value left = child(0);
      return Truth(left) ? left : child(1);
    }
    case Kind::kCompare: return EvaluateCompare(node);
    case Kind::kConditional: return EvaluateConditional(node);
    default: throw Error("a statement where an expression belongs");
  }
}

Value Interpreter::EvaluateList(const Node& node) {
  std::vector<Value> items;
  for (const NodePtr& child : node.children) items.push_back(Evaluate(*child));
  return Value::MakeList(std::move(items), node.kind == Kind::kTuple);
}

Value Interpreter::EvaluateDict(const Node& node) {
  std::vector<std::pair<std::string, Value>> entries;
  for (size_t i = 0; i < node.children.size(); i += 2) {
    const Value key = Evaluate(*node.children[i]);
    if (!key.if_string()) throw Error(std::string("unsupported: a dict key of type ") + key.TypeName());
    entries.emplace_back(*key.if_string(), Evaluate(*node.children[i + 1]));
  }
  return Value::MakeDict(std::move(entries));
}

Arguments Interpreter::EvaluateArguments(const Node& node) {
  Arguments arguments;
  for (size_t i = 0; i < node.names.size(); ++i) {
    Value value = Evaluate(*node.children[i + 1]);
    if (node.names[i].empty()) arguments.positional.push_back(std::move(value));
    else arguments.named.emplace_back(node.names[i], std::move(value));
  }
  return arguments;
}

Value Interpreter::EvaluateCall(const Node& node) {
  const Value callee = Evaluate(*node.children[0]);
  const Function* function = callee.if_function();
  if (!function) {
    throw Error(callee.is_undefined() ? callee.undefined_name()
                                      : std::string("a ") + callee.TypeName() + " cannot be called");
  }
  return (*function)(EvaluateArguments(node));
}

Value Interpreter::EvaluateBinary(const Node& node) {
  const Value left = Evaluate(*node.children[0]);
  return Operate(node.text, left, Evaluate(*node.children[1]), budget_);
}

Value Interpreter::EvaluateCompare(const Node& node) {
  Value left = Evaluate(*node.children[0]);
  for (size_t i = 0; i < node.names.size(); ++i) {
    Value right = Evaluate(*node.children[i + 1]);
    if (!CompareOnce(node.names[i], left, right)) return false;
    left = std::move(right);
  }
  return true;
}

bool Interpreter::CompareOnce(const std::string& op, const Value& a, const Value& b) {
  if (const List* list = b.if_list()) budget_.ChargeSize(list->items.size() * 8);
  if (const std::string* s = b.if_string()) budget_.ChargeSize(s->size());
  if (op == "==") return Equal(a, b);
  if (op == "!=") return !Equal(a, b);
  if (op == "in") return Contains(b, a);
  if (op == "not in") return !Contains(b, a);
  if (op == "<") return Less(a, b);
  if (op == ">") return Less(b, a);
  return op == "<=" ? !Less(b, a) : !Less(a, b);
}

Value Interpreter::EvaluateConditional(const Node& node) {
  if (Truth(Evaluate(*node.children[0]))) return Evaluate(*node.children[1]);
  if (node.children[2]) return Evaluate(*node.children[2]);
  return Value::MakeUndefined("the inline if has no else");
}

}  // namespace latentmesh::jinja
