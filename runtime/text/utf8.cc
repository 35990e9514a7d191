#include "runtime/text/utf8.h"

#include <algorithm>

namespace latentmesh {
namespace {

// How long the sequence that `lead` starts is, and the range its second byte must lie in (Unicode table 3-7).
struct Lead {
  int length;  // 0: not a lead byte
  uint8_t low, high;
};

Lead LeadOf(uint8_t lead) {
  if (lead < 0x80) return {1, 0, 0};
  if (lead < 0xC2) return {0, 0, 0};
  if (lead < 0xE0) return {2, 0x80, 0xBF};
  const auto byte = [](bool special, int if_special, int otherwise) {
    return static_cast<uint8_t>(special ? if_special : otherwise);
  };
  if (lead < 0xF0) return {3, byte(lead == 0xE0, 0xA0, 0x80), byte(lead == 0xED, 0x9F, 0xBF)};
  if (lead < 0xF5) return {4, byte(lead == 0xF0, 0x90, 0x80), byte(lead == 0xF4, 0x8F, 0xBF)};
  return {0, 0, 0};
}

// The number of leading bytes at `position` that agree with a well-formed sequence; `wanted` is its full length.
int GoodPrefix(std::string_view text, size_t position, int& wanted) {
  const Lead lead = LeadOf(static_cast<uint8_t>(text[position]));
  wanted = lead.length;
  if (lead.length <= 1) return lead.length;
  int good = 1;
  while (good < lead.length && position + good < text.size()) {
    const uint8_t byte = static_cast<uint8_t>(text[position + good]);
    const uint8_t low = good == 1 ? lead.low : 0x80;
    const uint8_t high = good == 1 ? lead.high : 0xBF;
    if (byte < low || byte > high) break;
    ++good;
  }
  return good;
}

}  // namespace

CodePoint DecodeMultiByte(std::string_view text, size_t position) {
  const uint8_t first = static_cast<uint8_t>(text[position]);
  int wanted = 0;
  const int good = GoodPrefix(text, position, wanted);
  if (wanted == 0 || good < wanted) return {kReplacementCharacter, 1, false};
  uint32_t value = first & (0xFFu >> (wanted + 1));
  for (int i = 1; i < wanted; ++i) value = value << 6 | (static_cast<uint8_t>(text[position + i]) & 0x3F);
  return {value, static_cast<uint32_t>(wanted), true};
}

size_t PreviousCodePoint(std::string_view text, size_t position) {
  const size_t floor = position > 4 ? position - 4 : 0;
  for (size_t start = position - 1;; --start) {
    const uint8_t byte = static_cast<uint8_t>(text[start]);
    if ((byte & 0xC0) != 0x80) return start + DecodeUtf8(text, start).length == position ? start : position - 1;
    if (start == floor) return position - 1;
  }
}

void AppendUtf8(std::string& out, uint32_t c) {
  if (c < 0x80) {
    out += static_cast<char>(c);
  } else if (c < 0x800) {
    out += {static_cast<char>(0xC0 | c >> 6), static_cast<char>(0x80 | (c & 0x3F))};
  } else if (c < 0x10000) {
    out += {static_cast<char>(0xE0 | c >> 12), static_cast<char>(0x80 | (c >> 6 & 0x3F)),
            static_cast<char>(0x80 | (c & 0x3F))};
  } else {
    out += {static_cast<char>(0xF0 | c >> 18), static_cast<char>(0x80 | (c >> 12 & 0x3F)),
            static_cast<char>(0x80 | (c >> 6 & 0x3F)), static_cast<char>(0x80 | (c & 0x3F))};
  }
}

bool IsValidUtf8(std::string_view text) {
  for (size_t i = 0; i < text.size();) {
    const CodePoint c = DecodeUtf8(text, i);
    if (!c.valid) return false;
    i += c.length;
  }
  return true;
}

size_t AppendLossyUtf8(std::string& out, std::string_view text) {
  size_t i = 0;
  while (i < text.size()) {
    int wanted = 0;
    const int good = GoodPrefix(text, i, wanted);
    if (good > 0 && good == wanted) {
      out.append(text.substr(i, good));
    } else if (good > 0 && i + good == text.size()) {
      return i;
    } else {
      AppendUtf8(out, kReplacementCharacter);
    }
    i += std::max(good, 1);
  }
  return i;
}

}  // namespace latentmesh
