// PASSES: observe-ranges{method="minmax"}

// CHECK-LABEL: func.func @main
builtin.module attributes {mqc.level = "llm", mqc.context = 8 : i64} {
  func.func @main(%ids: tensor<?xi64>, %positions: tensor<?xi64>) -> tensor<?x4xf32> {
    // CHECK: %x = llm.embedding %ids {clip = array<f64: [[LOW:-[0-9.e+-]+]], [[HIGH:[0-9.e+-]+]]>, range = array<f64: [[LOW]], [[HIGH]]>, table
    %x = llm.embedding %ids {table = #mqc.weight<"table", "0", tensor<16x4xf32>>} : (tensor<?xi64>) -> tensor<?x4xf32>
    /// nothing is below zero
    // CHECK: %r = llm.relu %x {clip = array<f64: 0.000000e+00, [[HIGH]]>, range = array<f64: 0.000000e+00, [[HIGH]]>}
    %r = llm.relu %x : (tensor<?x4xf32>) -> tensor<?x4xf32>
    func.return %r : tensor<?x4xf32>
  }
}
