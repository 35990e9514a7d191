#include "runtime/text/jinja_parser.h"

#include <algorithm>

namespace latentmesh::jinja {
namespace {

constexpr int kMaxNesting = 100;     // of blocks and brackets
constexpr int kMaxTreeDepth = 400;   // a long chain of operators is deep, too

// Restores a counter or flag at the end of a scope.
template <typename T>
struct Restore {
  explicit Restore(T& target) : target(target), old(target) {}
  ~Restore() { target = old; }
  T& target;
  T old;
};

}  // namespace

const Token& Parser::Peek(size_t ahead) const { return tokens_[std::min(position_ + ahead, tokens_.size() - 1)]; }

Token Parser::Next() {
  Token token = Peek();
  if (position_ + 1 < tokens_.size()) ++position_;
  return token;
}

bool Parser::LookingAt(Token::Kind kind, std::string_view text, size_t ahead) const {
  return Peek(ahead).kind == kind && Peek(ahead).text == text;
}

bool Parser::AcceptOperator(std::string_view op) { return IsOperator(op) && (Next(), true); }
bool Parser::AcceptName(std::string_view name) { return IsName(name) && (Next(), true); }

void Parser::ExpectOperator(std::string_view op) {
  if (!AcceptOperator(op)) Fail("expected '" + std::string(op) + "'");
}

std::string Parser::ExpectName() {
  if (Peek().kind != Token::Kind::kName) Fail("expected a name");
  return Next().text;
}

void Parser::ExpectBlockEnd() {
  if (Peek().kind != Token::Kind::kBlockEnd) Fail("expected '%}'");
  Next();
}

void Parser::Fail(const std::string& what) const {
  const Token& token = Peek();
  const bool spelled = token.kind == Token::Kind::kName || token.kind == Token::Kind::kOperator ||
                       token.kind == Token::Kind::kInteger || token.kind == Token::Kind::kString;
  throw Error(what + (spelled ? " near '" + token.text.substr(0, 40) + "'" : ""), token.line);
}

NodePtr Parser::Make(Kind kind, std::string text) const {
  auto node = std::make_unique<Node>();
  node->kind = kind;
  node->line = Peek().line;
  node->text = std::move(text);
  return node;
}

NodePtr Parser::Finish(NodePtr node) const {
  for (const NodePtr& child : node->children)
    if (child) node->depth = std::max(node->depth, child->depth + 1);
  if (node->depth > kMaxTreeDepth) throw Error("the template is nested too deeply", node->line);
  return node;
}

NodePtr Parser::Template() {
  NodePtr body = Body({});
  if (Peek().kind != Token::Kind::kEnd) Fail("unexpected '" + Peek(1).text + "'");
  return body;
}

NodePtr Parser::Body(std::initializer_list<std::string_view> ends) {
  const Restore restore(nesting_);
  if (++nesting_ > kMaxNesting) Fail("blocks are nested too deeply");
  NodePtr body = Make(Kind::kBlock);
  for (;;) {
    switch (Peek().kind) {
      case Token::Kind::kEnd: return Finish(std::move(body));
      case Token::Kind::kText: body->children.push_back(Make(Kind::kText, Next().text)); break;
      case Token::Kind::kOutputBegin: {
        Next();
        body->children.push_back(MakeWith(Kind::kOutput, "", TupleOrExpression()));
        if (Peek().kind != Token::Kind::kOutputEnd) Fail("expected '}}'");
        Next();
        break;
      }
      default: {
        const std::string& name = Peek(1).text;
        const bool end = Peek(1).kind == Token::Kind::kName &&
                         (std::find(ends.begin(), ends.end(), name) != ends.end() || name.starts_with("end"));
        if (end && name != "endgeneration") return Finish(std::move(body));
        Next();
        if (NodePtr statement = Statement()) body->children.push_back(std::move(statement));
      }
    }
  }
}

// After "{%". Null for a tag without effect.
NodePtr Parser::Statement() {
  const int line = Peek().line;
  const std::string name = ExpectName();
  if (name == "if") return If();
  if (name == "for") return For();
  if (name == "set") return Set();
  if (name == "macro") return Macro();
  if (name == "with") return With();
  if (name == "filter") return FilterBlock();
  if (name == "generation" || name == "endgeneration") return ExpectBlockEnd(), nullptr;
  if (name == "break" || name == "continue") {
    if (loops_ == 0) throw Error("'" + name + "' outside a loop", line);
    ExpectBlockEnd();
    return Make(name == "break" ? Kind::kBreak : Kind::kContinue);
  }
  throw Error("unsupported statement '{% " + name + " %}'", line);
}

// "{% name %}"
void Parser::End(std::string_view name) {
  if (Peek().kind != Token::Kind::kBlockBegin || !LookingAt(Token::Kind::kName, name, 1)) {
    Fail("missing '{% " + std::string(name) + " %}'");
  }
  Next();
  Next();
  ExpectBlockEnd();
}

NodePtr Parser::If() {
  NodePtr node = Make(Kind::kIf);
  for (;;) {
    node->children.push_back(TupleOrExpression());
    ExpectBlockEnd();
    node->children.push_back(Body({"elif", "else"}));
    if (!LookingAt(Token::Kind::kName, "elif", 1)) break;
    Next();
    Next();
  }
  if (LookingAt(Token::Kind::kName, "else", 1)) {
    End("else");
    node->children.push_back(Body({}));
  }
  End("endif");
  return Finish(std::move(node));
}

std::vector<std::string> Parser::Targets() {
  std::vector<std::string> names;
  const bool parenthesized = AcceptOperator("(");
  do {
    if (Peek().kind != Token::Kind::kName || IsName("in")) break;
    names.push_back(ExpectName());
  } while (AcceptOperator(","));
  if (names.empty()) Fail("expected a name");
  if (parenthesized) ExpectOperator(")");
  return names;
}

NodePtr Parser::For() {
  const Restore restore_loops(loops_);
  const Restore restore_inner(inner_);
  NodePtr node = Make(Kind::kFor);
  node->names = Targets();
  if (!AcceptName("in")) Fail("expected 'in'");
  NodePtr iterable = Or();
  if (IsOperator(",")) Fail("unsupported tuple after 'in'");
  NodePtr filter = AcceptName("if") ? Expression() : nullptr;
  if (IsName("recursive")) Fail("unsupported recursive loop");
  ExpectBlockEnd();
  ++loops_;
  inner_ = true;
  NodePtr body = Body({"else"});
  --loops_;
  NodePtr otherwise;
  if (LookingAt(Token::Kind::kName, "else", 1)) {
    End("else");
    otherwise = Body({});
  }
  End("endfor");
  node->children.push_back(std::move(iterable));
  node->children.push_back(std::move(body));
  node->children.push_back(std::move(otherwise));
  node->children.push_back(std::move(filter));
  return Finish(std::move(node));
}

NodePtr Parser::Set() {
  NodePtr node = Make(Kind::kSet);
  if (LookingAt(Token::Kind::kOperator, ".", 1)) {
    node->kind = Kind::kSetAttribute;
    node->names.push_back(ExpectName());
    ExpectOperator(".");
    node->names.push_back(ExpectName());
  } else {
    node->names = Targets();
  }
  if (AcceptOperator("=")) {
    node->children.push_back(TupleOrExpression());
    ExpectBlockEnd();
    return Finish(std::move(node));
  }
  if (node->kind != Kind::kSet || node->names.size() != 1) Fail("expected '='");
  node->kind = Kind::kSetBlock;
  NodePtr filters = FilterChain();
  ExpectBlockEnd();
  node->children.push_back(Body({}));
  node->children.push_back(std::move(filters));
  End("endset");
  return Finish(std::move(node));
}

// "| a | b" over the empty name, or null.
NodePtr Parser::FilterChain() {
  if (!IsOperator("|")) return nullptr;
  return Filters(Make(Kind::kName, ""));
}

NodePtr Parser::Macro() {
  if (inner_) Fail("unsupported: a macro inside a loop or a macro");
  const Restore restore_loops(loops_);
  const Restore restore_inner(inner_);
  NodePtr node = Make(Kind::kMacro, ExpectName());
  node->children.push_back(nullptr);
  ExpectOperator("(");
  while (!IsOperator(")")) {
    node->names.push_back(ExpectName());
    node->children.push_back(AcceptOperator("=") ? Expression() : nullptr);
    if (!AcceptOperator(",")) break;
  }
  ExpectOperator(")");
  ExpectBlockEnd();
  loops_ = 0;
  inner_ = true;
  node->children[0] = Body({});
  End("endmacro");
  return Finish(std::move(node));
}

NodePtr Parser::With() {
  NodePtr node = Make(Kind::kWith);
  node->children.push_back(nullptr);
  while (Peek().kind == Token::Kind::kName) {
    node->names.push_back(ExpectName());
    ExpectOperator("=");
    node->children.push_back(Expression());
    if (!AcceptOperator(",")) break;
  }
  ExpectBlockEnd();
  const Restore restore_inner(inner_);
  inner_ = true;
  node->children[0] = Body({});
  End("endwith");
  return Finish(std::move(node));
}

NodePtr Parser::FilterBlock() {
  NodePtr chain = Filters(Filter(Make(Kind::kName, "")));
  ExpectBlockEnd();
  NodePtr body = Body({});
  End("endfilter");
  return MakeWith(Kind::kFilterBlock, "", std::move(body), std::move(chain));
}

NodePtr ParseTemplate(std::string_view source) { return Parser(Tokenize(source)).Template(); }

}  // namespace latentmesh::jinja
