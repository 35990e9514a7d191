// Jinja's expression grammar, from the loosest binding to the tightest.
#include <algorithm>
#include <cstdlib>
#include <charconv>

#include "runtime/text/jinja_builtins.h"
#include "runtime/text/jinja_parser.h"

namespace latentmesh::jinja {
namespace {

constexpr int kMaxNesting = 100;

bool IsKeyword(std::string_view name) {
  for (const char* word : {"if", "else", "elif", "and", "or", "not", "in", "is"})
    if (name == word) return true;
  return false;
}

}  // namespace

NodePtr Parser::TupleOrExpression() {
  NodePtr first = Expression();
  if (!IsOperator(",")) return first;
  NodePtr tuple = Make(Kind::kTuple);
  tuple->children.push_back(std::move(first));
  while (AcceptOperator(",")) {
    const Token::Kind next = Peek().kind;
    if (next == Token::Kind::kBlockEnd || next == Token::Kind::kOutputEnd || IsOperator(")")) break;
    tuple->children.push_back(Expression());
  }
  return Finish(std::move(tuple));
}

NodePtr Parser::Expression() {
  if (++nesting_ > kMaxNesting * 2) Fail("an expression is nested too deeply");
  NodePtr node = Or();
  while (AcceptName("if")) {
    NodePtr condition = Or();
    NodePtr otherwise = AcceptName("else") ? Expression() : nullptr;
    node = MakeWith(Kind::kConditional, "", std::move(condition), std::move(node), std::move(otherwise));
  }
  --nesting_;
  return node;
}

NodePtr Parser::Or() {
  NodePtr left = And();
  while (AcceptName("or")) left = MakeWith(Kind::kOr, "", std::move(left), And());
  return left;
}

NodePtr Parser::And() {
  NodePtr left = Not();
  while (AcceptName("and")) left = MakeWith(Kind::kAnd, "", std::move(left), Not());
  return left;
}

NodePtr Parser::Not() {
  if (!AcceptName("not")) return Compare();
  if (++nesting_ > kMaxNesting * 2) Fail("an expression is nested too deeply");
  NodePtr node = MakeWith(Kind::kNot, "", Not());
  --nesting_;
  return node;
}

NodePtr Parser::Compare() {
  NodePtr first = Sum();
  NodePtr node = Make(Kind::kCompare);
  node->children.push_back(std::move(first));
  for (;;) {
    std::string op;
    for (const char* candidate : {"==", "!=", "<=", ">=", "<", ">"})
      if (op.empty() && AcceptOperator(candidate)) op = candidate;
    if (op.empty() && AcceptName("in")) op = "in";
    if (op.empty() && IsName("not") && LookingAt(Token::Kind::kName, "in", 1)) {
      Next();
      Next();
      op = "not in";
    }
    if (op.empty()) break;
    node->names.push_back(op);
    node->children.push_back(Sum());
  }
  if (node->names.empty()) return std::move(node->children.front());
  return Finish(std::move(node));
}

NodePtr Parser::Sum() {
  NodePtr left = Concat();
  while (IsOperator("+") || IsOperator("-")) {
    const std::string op = Next().text;
    left = MakeWith(Kind::kBinary, op, std::move(left), Concat());
  }
  return left;
}

NodePtr Parser::Concat() {
  NodePtr left = Product();
  while (AcceptOperator("~")) left = MakeWith(Kind::kBinary, "~", std::move(left), Product());
  return left;
}

NodePtr Parser::Product() {
  NodePtr left = Power();
  while (IsOperator("*") || IsOperator("/") || IsOperator("//") || IsOperator("%")) {
    const std::string op = Next().text;
    left = MakeWith(Kind::kBinary, op, std::move(left), Power());
  }
  return left;
}

NodePtr Parser::Power() {
  NodePtr left = Unary();
  while (AcceptOperator("**")) left = MakeWith(Kind::kBinary, "**", std::move(left), Unary());
  return left;
}

NodePtr Parser::Unary(bool with_filters) {
  if (++nesting_ > kMaxNesting * 2) Fail("an expression is nested too deeply");
  NodePtr node;
  if (AcceptOperator("-")) node = MakeWith(Kind::kNegate, "", Unary(false));
  else if (AcceptOperator("+")) node = Unary(false);
  else node = Primary();
  --nesting_;
  node = Postfix(std::move(node));
  return with_filters ? Filters(std::move(node)) : std::move(node);
}

NodePtr Parser::Primary() {
  if (AcceptOperator("(")) return Parenthesized();
  if (AcceptOperator("[")) return ListLiteral();
  if (AcceptOperator("{")) return DictLiteral();
  const Token token = Peek();
  if (token.kind == Token::Kind::kName && !IsKeyword(token.text)) {
    Next();
    static const std::pair<std::string_view, Value> kConstants[] = {
        {"true", true}, {"True", true}, {"false", false}, {"False", false}, {"none", Value()}, {"None", Value()}};
    for (const auto& [name, value] : kConstants) {
      if (token.text != name) continue;
      NodePtr node = Make(Kind::kLiteral);
      node->value = value;
      return node;
    }
    return Make(Kind::kName, token.text);
  }
  return Literal(token);
}

NodePtr Parser::Literal(const Token& token) {
  NodePtr node = Make(Kind::kLiteral);
  const char* end = token.text.data() + token.text.size();
  if (token.kind == Token::Kind::kString) {
    std::string text;
    while (Peek().kind == Token::Kind::kString) text += Next().text;  // adjacent strings join
    node->value = text;
    return node;
  }
  if (token.kind == Token::Kind::kInteger) {
    int64_t value = 0;
    if (std::from_chars(token.text.data(), end, value).ec != std::errc()) Fail("a number is too large");
    node->value = value;
  } else if (token.kind == Token::Kind::kFloat) {
    node->value = std::strtod(token.text.c_str(), nullptr);
  } else {
    Fail("expected an expression");
  }
  Next();
  return node;
}

NodePtr Parser::Parenthesized() {
  if (AcceptOperator(")")) return Make(Kind::kTuple);
  NodePtr inner = TupleOrExpression();
  ExpectOperator(")");
  return inner;
}

NodePtr Parser::ListLiteral() {
  NodePtr list = Make(Kind::kList);
  while (!IsOperator("]")) {
    list->children.push_back(Expression());
    if (!AcceptOperator(",")) break;
  }
  ExpectOperator("]");
  return Finish(std::move(list));
}

NodePtr Parser::DictLiteral() {
  NodePtr dict = Make(Kind::kDict);
  while (!IsOperator("}")) {
    dict->children.push_back(Expression());
    ExpectOperator(":");
    dict->children.push_back(Expression());
    if (!AcceptOperator(",")) break;
  }
  ExpectOperator("}");
  return Finish(std::move(dict));
}

NodePtr Parser::Postfix(NodePtr node) {
  for (;;) {
    if (AcceptOperator(".")) {
      const bool index = Peek().kind == Token::Kind::kInteger;
      if (index) node = MakeWith(Kind::kSubscript, "", std::move(node), Literal(Peek()));
      else node = MakeWith(Kind::kAttribute, ExpectName(), std::move(node));
    } else if (AcceptOperator("[")) {
      node = Subscript(std::move(node));
    } else if (IsOperator("(")) {
      NodePtr call = Make(Kind::kCall);
      call->children.push_back(std::move(node));
      CallArguments(*call);
      node = Finish(std::move(call));
    } else {
      return node;
    }
  }
}

NodePtr Parser::Subscript(NodePtr node) {
  NodePtr parts[3];
  int colons = 0;
  while (!IsOperator("]")) {
    if (AcceptOperator(":")) {
      if (++colons > 2) Fail("a slice has at most two ':'");
    } else {
      if (parts[colons]) Fail("expected ']'");
      parts[colons] = Expression();
    }
  }
  ExpectOperator("]");
  if (colons > 0) {
    return MakeWith(Kind::kSlice, "", std::move(node), std::move(parts[0]), std::move(parts[1]), std::move(parts[2]));
  }
  if (!parts[0]) Fail("an empty subscript");
  return MakeWith(Kind::kSubscript, "", std::move(node), std::move(parts[0]));
}

void Parser::CallArguments(Node& node) {
  ExpectOperator("(");
  while (!IsOperator(")")) {
    if (IsOperator("*") || IsOperator("**")) Fail("unsupported argument unpacking");
    const bool named = Peek().kind == Token::Kind::kName && LookingAt(Token::Kind::kOperator, "=", 1);
    node.names.push_back(named ? Next().text : "");
    if (named) ExpectOperator("=");
    node.children.push_back(Expression());
    if (!AcceptOperator(",")) break;
  }
  ExpectOperator(")");
}

NodePtr Parser::Filters(NodePtr node) {
  for (;;) {
    if (AcceptOperator("|")) node = Filter(std::move(node));
    else if (AcceptName("is")) node = Test(std::move(node));
    else if (IsOperator("(")) node = Postfix(std::move(node));
    else return node;
  }
}

// After "|".
NodePtr Parser::Filter(NodePtr input) {
  NodePtr node = Make(Kind::kFilter, ExpectName());
  if (!IsKnownFilter(node->text)) throw Error("unsupported filter '" + node->text + "'", node->line);
  node->children.push_back(std::move(input));
  if (IsOperator("(")) CallArguments(*node);
  return Finish(std::move(node));
}

// After "is".
NodePtr Parser::Test(NodePtr input) {
  const bool negated = AcceptName("not");
  NodePtr node = Make(Kind::kTest, ExpectName());
  if (!IsKnownTest(node->text)) throw Error("unsupported test '" + node->text + "'", node->line);
  node->children.push_back(std::move(input));
  const Token& next = Peek();
  const bool argument = next.kind == Token::Kind::kString || next.kind == Token::Kind::kInteger ||
                        next.kind == Token::Kind::kFloat || IsOperator("[") || IsOperator("{") ||
                        (next.kind == Token::Kind::kName && !IsKeyword(next.text));
  if (IsOperator("(")) {
    CallArguments(*node);
  } else if (argument) {
    node->names.push_back("");
    node->children.push_back(Postfix(Primary()));
  }
  node = Finish(std::move(node));
  return negated ? MakeWith(Kind::kNot, "", std::move(node)) : std::move(node);
}

}  // namespace latentmesh::jinja
