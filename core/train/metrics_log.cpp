// Formats and writes the metrics of steps.
#include "core/train/metrics_log.h"

#include <fmt/chrono.h>
#include <fmt/format.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <iterator>

#include "kernels/base/error.h"

namespace phalanx {
namespace {

double tokens_per_second(int64_t tokens, double seconds) {
  return seconds > 0 ? static_cast<double>(tokens) / seconds : 0.0;
}

/// Share of the peak of all ranks that the model's own FLOPs reach.
double utilisation(const RunFacts& facts, double tokens_per_s) {
  const double peak = facts.peak_flops * static_cast<double>(facts.num_ranks);
  return peak > 0 ? tokens_per_s * facts.flops_per_token / peak : 0.0;
}

double seconds_left(const RunFacts& facts, const TrainCounters& counters, double step_seconds) {
  return step_seconds *
         static_cast<double>(std::max<int64_t>(0, facts.train_iters - counters.step));
}

std::string json_number(double value) {
  return std::isfinite(value) ? fmt::format("{}", value) : "null";
}

std::string times_json(const StepTimes& times) {
  return fmt::format(
      R"({{"step": {:.6f}, "compute": {:.6f}, "data": {:.6f}, "wait": {:.6f}, "save": {:.6f}}})",
      times.step, times.compute(), times.data, times.wait, times.save);
}

}  // namespace

std::string hours_minutes_seconds(double seconds) {
  const auto whole = static_cast<int64_t>(std::llround(std::max(0.0, seconds)));
  return fmt::format("{}:{:02d}:{:02d}", whole / 3600, whole / 60 % 60, whole % 60);
}

std::string timestamp_now() {
  const auto now = std::chrono::system_clock::now();
  const auto micros =
      std::chrono::duration_cast<std::chrono::microseconds>(now.time_since_epoch()).count();
  const std::tm local = fmt::localtime(std::chrono::system_clock::to_time_t(now));
  return fmt::format("{:%Y-%m-%d %H:%M:%S}.{:06d}", local, micros % 1'000'000);
}

std::string iteration_line(const RunFacts& facts, const TrainCounters& counters,
                           const LogInterval& interval, const std::string& timestamp) {
  const double step_seconds = interval.seconds / static_cast<double>(interval.steps);
  const double rate = tokens_per_second(interval.tokens, interval.seconds);
  const double tflops = rate * facts.flops_per_token / static_cast<double>(facts.num_ranks) / 1e12;
  // The mean of the steps that counted; if none did, the last one's value shows what is wrong.
  const int64_t good = interval.steps - interval.skipped;
  const double count = good > 0 ? static_cast<double>(good) : 1.0;
  const double loss = good > 0 ? interval.loss_sum / count : interval.last.loss;
  const double z_loss = good > 0 ? interval.z_loss_sum / count : interval.last.z_loss;

  std::string line;
  const auto out = std::back_inserter(line);
  fmt::format_to(out, " [{}] iteration {:8d}/{:8d} |", timestamp, counters.step, facts.train_iters);
  fmt::format_to(out, " consumed samples: {:12d} |", counters.consumed_samples);
  fmt::format_to(out, " elapsed time per iteration (ms): {:.1f} |", step_seconds * 1e3);
  fmt::format_to(out, " throughput per GPU (TFLOP/s/GPU): {:.1f} |", tflops);
  fmt::format_to(out, " learning rate: {:.6E} |", interval.last.learning_rate);
  fmt::format_to(out, " global batch size: {:5d} |", facts.global_batch_size);
  fmt::format_to(out, " lm loss: {:.6E} |", loss);
  if (facts.log_z_loss) fmt::format_to(out, " z loss: {:.6E} |", z_loss);
  fmt::format_to(out, " loss scale: {:.1f} |", 1.0);
  fmt::format_to(out, " grad norm: {:.3f} |", interval.last.gradient_norm);
  fmt::format_to(out, " number of skipped iterations: {:3d} |", interval.skipped);
  fmt::format_to(out, " number of nan iterations: {:3d} |", interval.nan);
  fmt::format_to(out, " tokens/s: {:.0f} |", rate);
  fmt::format_to(out, " model FLOP utilisation: {:.1f}% |", 100 * utilisation(facts, rate));
  fmt::format_to(out, " eta: {} |",
                 hours_minutes_seconds(seconds_left(facts, counters, step_seconds)));
  return line;
}

std::string validation_line(int64_t iteration, double loss) {
  // Megatron caps the exponent so that an untrained model still prints a number.
  return fmt::format(
      " validation loss at iteration {} | lm loss value: {:.6E} | lm loss PPL: {:.6E} | ",
      iteration, loss, std::exp(std::min(20.0, loss)));
}

std::string step_json(const RunFacts& facts, const TrainCounters& counters,
                      const StepMetrics& metrics, const StepTimes& times,
                      const std::vector<GroupTraffic>& communication) {
  const double rate = tokens_per_second(metrics.tokens, times.step);
  const std::string groups = communication.empty() ? ""
                                                   : fmt::format(R"(, "communication": {})",
                                                                 communication_json(communication));
  const std::string router =
      facts.log_router ? fmt::format(R"(, "router_balance_loss": {}, "router_z_loss": {})",
                                     json_number(metrics.router_balance_loss),
                                     json_number(metrics.router_z_loss))
                       : "";
  return fmt::format(
      R"({{"iteration": {}, "consumed_samples": {}, "consumed_tokens": {}, "lm_loss": {}, )"
      R"("z_loss": {}, "grad_norm": {}, "learning_rate": {}, "tokens_per_second": {:.1f}, )"
      R"("step_ms": {:.3f}, "mfu": {:.4f}, "skipped": {}, "skipped_total": {}, )"
      R"("loss_tokens": {}, "time": {:.6f}, "seconds": {}{}{}}})",
      counters.step, counters.consumed_samples, counters.consumed_tokens, json_number(metrics.loss),
      json_number(metrics.z_loss), json_number(metrics.gradient_norm),
      json_number(metrics.learning_rate), rate, times.step * 1e3, utilisation(facts, rate),
      metrics.skipped, counters.skipped_steps, metrics.loss_tokens, times.ended, times_json(times),
      router, groups);
}

MetricsLog::MetricsLog(const RunFacts& facts, const Files& files, std::FILE* out)
    : facts_(facts),
      files_(files),
      out_(out),
      // mpirun gives its ranks a pseudo-terminal for stdout even when its own goes to a file, but a
      // pipe for stderr: only both together are a person's terminal.
      terminal_(isatty(fileno(out)) != 0 && isatty(STDERR_FILENO) != 0),
      metrics_file_(files.metrics),
      tensorboard_(files.tensorboard_folder) {}

void MetricsLog::step(const TrainCounters& counters, const StepMetrics& metrics,
                      const StepTimes& times, const std::vector<GroupTraffic>& communication) {
  write_record(step_json(facts_, counters, metrics, times, communication));
  const double rate = tokens_per_second(metrics.tokens, times.step);
  const std::array<Scalar, 6> scalars{{{"lm loss", metrics.loss},
                                       {"z loss", metrics.z_loss},
                                       {"grad-norm", metrics.gradient_norm},
                                       {"learning-rate", metrics.learning_rate},
                                       {"tokens-per-second", rate},
                                       {"mfu", utilisation(facts_, rate)}}};
  write_scalars(counters.step, scalars);

  interval_.steps += 1;
  interval_.skipped += metrics.skipped ? 1 : 0;
  interval_.nan += std::isfinite(metrics.loss) ? 0 : 1;
  interval_.seconds += times.step;
  interval_.tokens += metrics.tokens;
  interval_.loss_sum += metrics.skipped ? 0.0 : metrics.loss;
  interval_.z_loss_sum += metrics.skipped ? 0.0 : metrics.z_loss;
  interval_.last = metrics;
  if (metrics.skipped)
    message(fmt::format("step {} is skipped: loss {}, gradient norm {} ({} skipped so far)",
                        counters.step, metrics.loss, metrics.gradient_norm,
                        counters.skipped_steps));
  if (counters.step % facts_.log_interval == 0 || counters.step == facts_.train_iters) {
    print_line(iteration_line(facts_, counters, interval_, timestamp_now()));
    interval_ = {};
  } else if (terminal_) {
    show_status(counters, metrics, times.step);
  }
}

void MetricsLog::validation(const TrainCounters& counters, const ValidationMetrics& metrics,
                            double seconds) {
  const std::string line = validation_line(counters.step, metrics.loss);
  const std::string rule(line.size() + 1, '-');
  print_line(rule + "\n" + line + "\n" + rule);
  const double perplexity = std::exp(metrics.loss);
  write_record(
      fmt::format(R"({{"iteration": {}, "consumed_samples": {}, "validation_loss": {}, )"
                  R"("validation_z_loss": {}, "validation_perplexity": {}, )"
                  R"("validation_tokens": {}, "time": {:.6f}, "evaluation_seconds": {:.6f}}})",
                  counters.step, counters.consumed_samples, json_number(metrics.loss),
                  json_number(metrics.z_loss), json_number(perplexity), metrics.tokens,
                  unix_seconds(), seconds));
  const std::array<Scalar, 2> scalars{
      {{"lm loss validation", metrics.loss}, {"lm loss validation ppl", perplexity}}};
  write_scalars(counters.step, scalars);
}

void MetricsLog::pipeline(const TrainCounters& counters, double predicted_bubble,
                          double measured_bubble) {
  message(fmt::format("pipeline bubble: {:.1f} % predicted, {:.1f} % measured (waiting for stages)",
                      100 * predicted_bubble, 100 * measured_bubble));
  write_record(
      fmt::format(R"({{"iteration": {}, "predicted_bubble": {:.4f}, "measured_bubble": {:.4f}}})",
                  counters.step, predicted_bubble, measured_bubble));
}

void MetricsLog::record(const std::string& event, const nlohmann::ordered_json& fields) {
  nlohmann::ordered_json record{{"event", event}, {"time", unix_seconds()}};
  record.update(fields);
  write_record(record.dump(-1, ' ', false, nlohmann::ordered_json::error_handler_t::replace));
}

void MetricsLog::message(const std::string& text) {
  print_line(" " + text);
}

void MetricsLog::print_line(const std::string& line) {
  // On a terminal the live line is wiped first: carriage return, erase to the end of the line.
  fmt::print(out_, "{}{}\n", status_shown_ ? "\r\x1b[K" : "", line);
  std::fflush(out_);
  status_shown_ = false;
}

void MetricsLog::show_status(const TrainCounters& counters, const StepMetrics& metrics,
                             double seconds) {
  fmt::print(out_, "\r\x1b[K step {}/{}  loss {:.4f}  {:.0f} tokens/s  eta {}", counters.step,
             facts_.train_iters, metrics.loss, tokens_per_second(metrics.tokens, seconds),
             hours_minutes_seconds(seconds_left(facts_, counters, seconds)));
  std::fflush(out_);
  status_shown_ = true;
}

void MetricsLog::write_record(const std::string& record) {
  tell_loss(metrics_file_.append(record + "\n"), metrics_file_.path(), records_lost_);
}

void MetricsLog::write_scalars(int64_t step, std::span<const Scalar> scalars) {
  tell_loss(tensorboard_.write(step, scalars), tensorboard_.path(), scalars_lost_);
}

void MetricsLog::tell_loss(bool written, const std::string& file, bool& told) {
  if (!written && !told)
    message("CANNOT WRITE to " + file +
            "; is the disk full? Records are lost until it can; training goes on");
  told = !written;
}

}  // namespace phalanx
