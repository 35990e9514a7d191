#include "runtime/text/jinja_lexer.h"

#include <algorithm>
#include <cctype>

#include "runtime/text/jinja_value.h"
#include "runtime/text/unicode.h"
#include "runtime/text/utf8.h"

namespace latentmesh::jinja {
namespace {

using Kind = Token::Kind;

bool IsNameStart(char c) { return std::isalpha(static_cast<unsigned char>(c)) || c == '_'; }
bool IsNamePart(char c) { return std::isalnum(static_cast<unsigned char>(c)) || c == '_'; }
bool IsDigit(char c) { return c >= '0' && c <= '9'; }

std::string NormalizeNewlines(std::string_view source) {
  std::string out;
  out.reserve(source.size());
  for (size_t i = 0; i < source.size(); ++i) {
    if (source[i] != '\r') out += source[i];
    else if (i + 1 == source.size() || source[i + 1] != '\n') out += '\n';
  }
  if (!out.empty() && out.back() == '\n') out.pop_back();
  return out;
}

class Lexer {
 public:
  explicit Lexer(std::string_view source) : source_(NormalizeNewlines(source)), rest_(source_) {}

  std::vector<Token> Run() {
    while (!rest_.empty()) {
      const size_t tag = NextTag();
      if (tag == std::string_view::npos) {
        AddText(rest_);
        Skip(rest_.size());
      } else {
        Tag(tag);
      }
    }
    Add(Kind::kEnd, "");
    return std::move(tokens_);
  }

 private:
  void Add(Kind kind, std::string text) { tokens_.push_back({kind, std::move(text), line_}); }
  void AddText(std::string_view text) {
    if (!text.empty()) Add(Kind::kText, std::string(text));
  }
  void Skip(size_t count) {
    line_ += static_cast<int>(std::count(rest_.begin(), rest_.begin() + count, '\n'));
    rest_.remove_prefix(count);
  }
  void SkipWhitespace() {
    size_t i = 0;
    while (i < rest_.size()) {
      const CodePoint c = DecodeUtf8(rest_, i);
      if (!IsWhitespace(c.value)) break;
      i += c.length;
    }
    Skip(i);
  }

  size_t NextTag() const {
    for (size_t i = rest_.find('{'); i != std::string_view::npos; i = rest_.find('{', i + 1)) {
      if (i + 1 < rest_.size() && (rest_[i + 1] == '%' || rest_[i + 1] == '{' || rest_[i + 1] == '#')) return i;
    }
    return std::string_view::npos;
  }

  // The text before a tag, as '-', '+' and lstrip_blocks leave it.
  std::string_view TextBefore(size_t tag) const {
    std::string_view text = rest_.substr(0, tag);
    const char control = tag + 2 < rest_.size() ? rest_[tag + 2] : ' ';
    if (control == '-') {
      while (!text.empty()) {
        const size_t last = PreviousCodePoint(text, text.size());
        if (!IsWhitespace(DecodeUtf8(text, last).value)) break;
        text = text.substr(0, last);
      }
    } else if (control != '+' && rest_[tag + 1] != '{') {
      const size_t newline = text.rfind('\n');
      const size_t start = newline == std::string_view::npos ? 0 : newline + 1;
      const bool line_start = newline != std::string_view::npos || at_line_start_;
      const bool blank = text.find_first_not_of(" \t\f\v", start) == std::string_view::npos;
      if (line_start && blank) text = text.substr(0, start);
    }
    return text;
  }

  void Tag(size_t tag) {
    const char type = rest_[tag + 1];
    AddText(TextBefore(tag));
    Skip(tag + 2);
    if (type == '#') return Comment();
    if (!rest_.empty() && (rest_[0] == '-' || (rest_[0] == '+' && type == '%'))) Skip(1);
    if (type == '%' && Raw()) return;
    Add(type == '%' ? Kind::kBlockBegin : Kind::kOutputBegin, "");
    Inside(type == '%' ? '%' : '}');
    Add(type == '%' ? Kind::kBlockEnd : Kind::kOutputEnd, "");
    AfterTag(type == '%');
  }

  // After the closing "%}" or "}}": what the control sign before it and trim_blocks remove.
  void AfterTag(bool block) {
    at_line_start_ = false;
    if (close_control_ == '-') return SkipWhitespace();
    if (block && close_control_ != '+' && rest_.starts_with('\n')) {
      Skip(1);
      at_line_start_ = true;
    }
  }

  void Comment() {
    const size_t end = rest_.find("#}");
    if (end == std::string_view::npos) throw Error("a comment without '#}'", line_);
    close_control_ = end > 0 ? rest_[end - 1] : ' ';
    Skip(end + 2);
    AfterTag(true);
  }

  bool AcceptWord(std::string_view word) {
    SkipWhitespace();
    if (!rest_.starts_with(word) || (rest_.size() > word.size() && IsNamePart(rest_[word.size()]))) return false;
    Skip(word.size());
    SkipWhitespace();
    return true;
  }

  // After "{%": takes a whole raw block, if it is one.
  bool Raw() {
    const std::string_view start = rest_;
    const int line = line_;
    if (!AcceptWord("raw") || !AcceptClose('%')) {
      rest_ = start;
      line_ = line;
      return false;
    }
    AfterTag(false);  // trim_blocks leaves a newline at the start of raw text
    for (size_t i = rest_.find("{%"); i != std::string_view::npos; i = rest_.find("{%", i + 2)) {
      if (EndRaw(i)) return true;
    }
    throw Error("'raw' without 'endraw'", line_);
  }

  bool EndRaw(size_t tag) {
    const std::string_view start = rest_, text = TextBefore(tag);
    const int line = line_;
    Skip(tag + 2);
    if (!rest_.empty() && (rest_[0] == '-' || rest_[0] == '+')) Skip(1);
    if (AcceptWord("endraw") && AcceptClose('%')) {
      AddText(text);
      AfterTag(true);
      return true;
    }
    rest_ = start;
    line_ = line;
    return false;
  }

  // "%}", "-%}", "+%}" or the same with '}}'.
  bool AcceptClose(char type) {
    const std::string close = {type, '}'};
    const bool signed_close = rest_.size() > 2 && (rest_[0] == '-' || (rest_[0] == '+' && type == '%')) &&
                              rest_.substr(1).starts_with(close);
    if (!signed_close && !rest_.starts_with(close)) return false;
    close_control_ = signed_close ? rest_[0] : ' ';
    Skip(signed_close ? 3 : 2);
    return true;
  }

  void Inside(char type) {
    int open = 0;  // inside brackets '}}' may be two closing braces
    for (;;) {
      SkipWhitespace();
      if (rest_.empty()) throw Error("a tag without its end", line_);
      if (open == 0 && AcceptClose(type)) return;
      if (rest_[0] == '{' || rest_[0] == '[' || rest_[0] == '(') ++open;
      if (rest_[0] == '}' || rest_[0] == ']' || rest_[0] == ')') --open;
      Lexeme();
    }
  }

  void Lexeme() {
    const char c = rest_[0];
    if (IsNameStart(c)) {
      size_t n = 1;
      while (n < rest_.size() && IsNamePart(rest_[n])) ++n;
      Take(Kind::kName, n);
    } else if (IsDigit(c)) {
      Number();
    } else if (c == '\'' || c == '"') {
      String(c);
    } else {
      Operator();
    }
  }

  void Take(Kind kind, size_t count) {
    Add(kind, std::string(rest_.substr(0, count)));
    Skip(count);
  }

  void Number() {
    size_t n = 0;
    const auto digits = [&] { while (n < rest_.size() && (IsDigit(rest_[n]) || rest_[n] == '_')) ++n; };
    const auto digit_at = [&](size_t i) { return i < rest_.size() && IsDigit(rest_[i]); };
    digits();
    bool real = false;
    if (n < rest_.size() && rest_[n] == '.' && digit_at(n + 1)) {
      ++n;
      digits();
      real = true;
    }
    if (n < rest_.size() && (rest_[n] | 32) == 'e') {
      const bool sign = n + 1 < rest_.size() && (rest_[n + 1] == '+' || rest_[n + 1] == '-');
      if (digit_at(n + 1 + sign)) {
        n += 1 + sign;
        digits();
        real = true;
      }
    }
    std::string text(rest_.substr(0, n));
    text.erase(std::remove(text.begin(), text.end(), '_'), text.end());
    Add(real ? Kind::kFloat : Kind::kInteger, text);
    Skip(n);
  }

  void String(char quote) {
    std::string value;
    size_t i = 1;
    for (; i < rest_.size() && rest_[i] != quote; ++i) {
      if (rest_[i] == '\\' && i + 1 < rest_.size()) i = Escape(i + 1, value);
      else value += rest_[i];
    }
    if (i >= rest_.size()) throw Error("a string without its closing quote", line_);
    Add(Kind::kString, value);
    Skip(i + 1);
  }

  // The escape whose letter is at `i`; returns the position of its last character.
  size_t Escape(size_t i, std::string& value) const {
    static constexpr std::string_view kLetters = "ntrbfav0\\'\"", kValues("\n\t\r\b\f\a\v\0\\'\"", 11);
    const char letter = rest_[i];
    if (letter == '\n') return i;
    if (letter == 'x' || letter == 'u' || letter == 'U') {
      const size_t digits = letter == 'x' ? 2 : letter == 'u' ? 4 : 8;
      const std::string hex(rest_.substr(i + 1, digits));
      const bool good =
          hex.size() == digits && std::all_of(hex.begin(), hex.end(), [](unsigned char c) { return std::isxdigit(c); });
      const uint32_t c = good ? static_cast<uint32_t>(std::stoul(hex, nullptr, 16)) : kMaxCodePoint + 1;
      if (c > kMaxCodePoint) throw Error("a bad escape in a string", line_);
      AppendUtf8(value, c);
      return i + digits;
    }
    const size_t known = kLetters.find(letter);
    if (known == std::string_view::npos) value += '\\';
    value += known == std::string_view::npos ? letter : kValues[known];
    return i;
  }

  void Operator() {
    for (const std::string_view op : {"**", "//", "==", "!=", "<=", ">="}) {
      if (rest_.starts_with(op)) return Take(Kind::kOperator, 2);
    }
    if (std::string_view("+-*/%~<>=.:|,()[]{};").find(rest_[0]) == std::string_view::npos) {
      throw Error(
          std::string("unexpected character '") + std::string(rest_.substr(0, DecodeUtf8(rest_, 0).length)) + "'",
          line_);
    }
    Take(Kind::kOperator, 1);
  }

  std::string source_;
  std::string_view rest_;
  std::vector<Token> tokens_;
  int line_ = 1;
  char close_control_ = ' ';
  bool at_line_start_ = true;
};

}  // namespace

std::vector<Token> Tokenize(std::string_view source) { return Lexer(source).Run(); }

}  // namespace latentmesh::jinja
