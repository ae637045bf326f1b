// What a test of the machines has measured, and which of them are slower than they should be.
#pragma once

#include <cstdint>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

namespace phalanx {

/// Of one node, in its slowest rank. 0: not measured.
struct NodeMeasure {
  std::string node;
  double gflops = 0;     // matrix products of one rank while all compute
  int slowest_rank = 0;  // that has them
  double copy_gbps = 0;  // bytes copied (read and written count once) of one rank while all copy
  double disk_gbps = 0;  // written to the run folder and synced, by one rank while all nodes do
  double link_gbps = 0;  // each way at once; the median of its links
};

/// Between two nodes (places in the list of nodes), both ways at once while other pairs talk too.
struct LinkMeasure {
  int a = 0;
  int b = 0;
  double gbps = 0;          // each way
  double microseconds = 0;  // for a message of 8 bytes there or back, the best of several
};

struct PreflightReport {
  std::vector<NodeMeasure> nodes;
  std::vector<LinkMeasure> links;
  double seconds = 0;  // that the test took
};

/// A sentence per node or link that is out of line: rates below 70 % of the median, latencies above
/// three times the median. The median of an even number is the better of the two in the middle, so
/// that of two nodes one can be the slow one. A node is blamed for its links if it has several and
/// more than half of them are slow; else each slow link is named.
std::vector<std::string> preflight_outliers(const PreflightReport& report);

/// At most ten lines for people, however many nodes: smallest, median and greatest figures, and
/// `outliers` as far as there is room.
std::string preflight_table(const PreflightReport& report,
                            const std::vector<std::string>& outliers);

/// The ledger's record.
nlohmann::ordered_json preflight_json(const PreflightReport& report,
                                      const std::vector<std::string>& outliers);

/// Pairs of nodes that talk at the same time, round by round: nodes 1, 2, 4, 8, ... places apart,
/// each in at most one pair of a round. Every node is in some pair. Round after round in the order
/// of the distance, so that one may stop after any distance.
struct LinkRound {
  int distance = 0;
  std::vector<std::pair<int, int>> pairs;
};
std::vector<LinkRound> link_rounds(int num_nodes);

}  // namespace phalanx
