#include "scheduler/report/curves_svg.h"

#include <algorithm>
#include <cmath>
#include <functional>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_replace.h"

namespace parley {
namespace {

// Blue and orange differ in lightness too, so they stay apart in grey and for colour-blind eyes.
constexpr char kTrainColor[] = "#1f6fb4";
constexpr char kTestColor[] = "#e1701a";
constexpr double kWidth = 880, kHeight = 372;
constexpr size_t kMostMarkers = 40;  // beyond that they would run into each other

struct Point {
  double x, y;
};
struct Series {
  const char* name;
  const char* color;
  std::vector<Point> points;
};

// The rectangle of the plot itself and the values at its edges.
struct Frame {
  double left, top, width, height;
  double x_low, x_high, y_low, y_high;

  double X(double x) const { return left + (x - x_low) / (x_high - x_low) * width; }
  double Y(double y) const { return top + height - (y - y_low) / (y_high - y_low) * height; }
};

std::string EscapeXml(const std::string& text) {
  std::string out =
      absl::StrReplaceAll(text, {{"&", "&amp;"}, {"<", "&lt;"}, {">", "&gt;"}, {"\"", "&quot;"}});
  // Control characters cannot be in XML at all.
  std::replace_if(
      out.begin(), out.end(), [](unsigned char c) { return c < 0x20; }, ' ');
  return out;
}

std::string Label(double value, double step) {
  const int digits = step >= 1 ? 0 : static_cast<int>(std::ceil(-std::log10(step) - 1e-9));
  return absl::StrFormat("%.*f", std::min(digits, 9), value);
}

void Text(std::string* svg, double x, double y, const char* anchor, const std::string& text,
          const char* attributes = "") {
  absl::StrAppendFormat(svg, "<text x=\"%.1f\" y=\"%.1f\" text-anchor=\"%s\"%s>%s</text>\n", x, y,
                        anchor, attributes, text);
}

Series Collect(const char* name, const char* color, absl::Span<const EpochMetrics> epochs,
               bool test, double EpochMetrics::*value) {
  Series series{name, color, {}};
  for (const EpochMetrics& epoch : epochs) {
    if (test && !epoch.evaluated) continue;
    if (std::isfinite(epoch.*value)) series.points.push_back({epoch.epoch + 1.0, epoch.*value});
  }
  return series;
}

// Epochs are whole numbers: ticks at fractions of one would lie.
std::vector<double> EpochTicks(double last) {
  std::vector<double> ticks;
  for (double tick : NiceTicks(1, std::max(2.0, last), 8)) {
    if (tick >= 1 && tick <= last && tick == std::floor(tick)) ticks.push_back(tick);
  }
  if (ticks.empty() || ticks.front() != 1) ticks.insert(ticks.begin(), 1);
  return ticks;
}

void DrawAxes(std::string* svg, const Frame& frame, const std::vector<double>& x_ticks,
              const std::vector<double>& y_ticks) {
  const double step = y_ticks[1] - y_ticks[0];
  for (double tick : y_ticks) {
    const double y = frame.Y(tick);
    absl::StrAppendFormat(
        svg, "<line x1=\"%.1f\" y1=\"%.1f\" x2=\"%.1f\" y2=\"%.1f\" stroke=\"#e3e6ea\"/>\n",
        frame.left, y, frame.left + frame.width, y);
    Text(svg, frame.left - 8, y + 4, "end", Label(tick, step));
  }
  const double bottom = frame.top + frame.height;
  absl::StrAppendFormat(svg,
                        "<path d=\"M%.1f %.1fV%.1fH%.1f\" fill=\"none\" stroke=\"#8a929c\"/>\n",
                        frame.left, frame.top, bottom, frame.left + frame.width);
  for (double tick : x_ticks) {
    absl::StrAppendFormat(svg, "<path d=\"M%.1f %.1fv5\" stroke=\"#8a929c\"/>\n", frame.X(tick),
                          bottom);
    Text(svg, frame.X(tick), bottom + 19, "middle", absl::StrFormat("%.0f", tick));
  }
  Text(svg, frame.left + frame.width / 2, bottom + 38, "middle", "epoch");
}

void DrawSeries(std::string* svg, const Frame& frame, const Series& series) {
  if (series.points.size() > 1) {
    absl::StrAppend(svg, "<polyline fill=\"none\" stroke-width=\"2\" stroke-linejoin=\"round\" ",
                    "stroke=\"", series.color, "\" points=\"");
    for (const Point& point : series.points) {
      absl::StrAppendFormat(svg, "%.1f,%.1f ", frame.X(point.x), frame.Y(point.y));
    }
    absl::StrAppend(svg, "\"/>\n");
  }
  if (series.points.size() > kMostMarkers) return;
  for (const Point& point : series.points) {
    absl::StrAppendFormat(
        svg, "<circle cx=\"%.1f\" cy=\"%.1f\" r=\"3.5\" fill=\"%s\" stroke=\"#ffffff\"/>\n",
        frame.X(point.x), frame.Y(point.y), series.color);
  }
}

void DrawPanel(std::string* svg, double left, const std::string& name,
               const std::vector<Series>& all, double epochs) {
  double low = 0, high = 1;
  bool any = false;
  for (const Series& series : all) {
    for (const Point& point : series.points) {
      low = any ? std::min(low, point.y) : point.y;
      high = any ? std::max(high, point.y) : point.y;
      any = true;
    }
  }
  const std::vector<double> y_ticks = NiceTicks(low, high, 5);
  const bool single = epochs <= 1;
  // Half an epoch of air on both sides puts a single point into the middle.
  const Frame frame{
      left, 84, 340, 224, single ? 0.5 : 1, single ? 1.5 : epochs, y_ticks.front(), y_ticks.back()};
  Text(svg, left - 40, 66, "start", name, " font-size=\"14\" font-weight=\"600\"");
  DrawAxes(svg, frame, EpochTicks(epochs), y_ticks);
  if (!any) Text(svg, left + 170, 196, "middle", "no epoch has ended");
  for (const Series& series : all) DrawSeries(svg, frame, series);

  // The legend, at the panel's upper right; the last value is what one looks for.
  double x = left + 340;
  for (auto series = all.rbegin(); series != all.rend(); ++series) {
    if (series->points.empty()) continue;
    const std::string text =
        absl::StrCat(series->name, " ", Label(series->points.back().y, 0.0001));
    Text(svg, x, 66, "end", text);
    x -= 6.4 * text.size() + 22;
    absl::StrAppendFormat(svg,
                          "<rect x=\"%.1f\" y=\"57\" width=\"14\" height=\"8\" rx=\"2\" "
                          "fill=\"%s\"/>\n",
                          x, series->color);
    x -= 16;
  }
}

}  // namespace

std::vector<double> NiceTicks(double low, double high, int count) {
  if (high - low < 1e-9 * std::max(1.0, std::abs(high))) {
    // All values equal: a little room on both sides.
    const double room = std::max(std::abs(high) * 0.1, 0.05);
    low -= room, high += room;
  }
  const double raw = (high - low) / std::max(1, count);
  const double power = std::pow(10, std::floor(std::log10(raw)));
  const double factor = raw / power;
  const double step = power * (factor <= 1 ? 1 : factor <= 2 ? 2 : factor <= 5 ? 5 : 10);
  const double first = std::floor(low / step + 1e-9), last = std::ceil(high / step - 1e-9);
  std::vector<double> ticks;
  for (double k = first; k <= std::max(last, first + 1); ++k) ticks.push_back(k * step);
  return ticks;
}

std::string CurvesSvg(const std::string& title, absl::Span<const EpochMetrics> epochs) {
  double last = 1;
  for (const EpochMetrics& epoch : epochs) last = std::max(last, epoch.epoch + 1.0);
  std::string svg = absl::StrFormat(
      "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"%.0f\" height=\"%.0f\" "
      "viewBox=\"0 0 %.0f %.0f\" font-family=\"system-ui, 'DejaVu Sans', sans-serif\" "
      "font-size=\"12\" fill=\"#39424e\">\n<rect width=\"100%%\" height=\"100%%\" "
      "fill=\"#ffffff\"/>\n",
      kWidth, kHeight, kWidth, kHeight);
  Text(&svg, 24, 32, "start", EscapeXml(title), " font-size=\"17\" font-weight=\"600\"");
  DrawPanel(&svg, 64, "loss",
            {Collect("train", kTrainColor, epochs, false, &EpochMetrics::train_loss),
             Collect("test", kTestColor, epochs, true, &EpochMetrics::test_loss)},
            last);
  DrawPanel(&svg, 504, "accuracy",
            {Collect("train", kTrainColor, epochs, false, &EpochMetrics::train_accuracy),
             Collect("test", kTestColor, epochs, true, &EpochMetrics::test_accuracy)},
            last);
  return svg + "</svg>\n";
}

}  // namespace parley
