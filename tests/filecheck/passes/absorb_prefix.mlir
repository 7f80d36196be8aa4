// PASSES: absorb-prefix{tokens=3,1}

/// the rows of both prefix tokens become constants of every attention
// CHECK: builtin.module attributes {mqc.level = "llm", mqc.context = 8 : i64, mqc.prefix = array<i64: 3, 1>}
// CHECK: %a = llm.attention %q, %k, %v
// CHECK-SAME: prefix_k = #mqc.weight<"a.prefix_k", "{{[0-9a-f]+}}", tensor<2x2xf32>>
// CHECK-SAME: prefix_v = #mqc.weight<"a.prefix_v", "{{[0-9a-f]+}}", tensor<2x2xf32>>
// CHECK: %b = llm.attention %a, %k, %v
// CHECK-SAME: prefix_k = #mqc.weight<"b.prefix_k"
builtin.module attributes {mqc.level = "llm", mqc.context = 8 : i64} {
  func.func @main(%ids: tensor<?xi64>, %positions: tensor<?xi64>) -> tensor<?x4xf32> {
    %x = llm.embedding %ids {table = #mqc.weight<"table", "0", tensor<16x4xf32>>} : (tensor<?xi64>) -> tensor<?x4xf32>
    %q = llm.linear %x {weight = #mqc.weight<"wq", "0", tensor<4x4xf32>>} : (tensor<?x4xf32>) -> tensor<?x4xf32>
    %k = llm.linear %x {weight = #mqc.weight<"wk", "0", tensor<2x4xf32>>} : (tensor<?x4xf32>) -> tensor<?x2xf32>
    %v = llm.linear %x {weight = #mqc.weight<"wv", "0", tensor<2x4xf32>>} : (tensor<?x4xf32>) -> tensor<?x2xf32>
    %a = llm.attention %q, %k, %v {heads = 2, kv_heads = 1, layer = 0, scale = 0.5} : (tensor<?x4xf32>, tensor<?x2xf32>, tensor<?x2xf32>) -> tensor<?x4xf32>
    %b = llm.attention %a, %k, %v {heads = 2, kv_heads = 1, layer = 1, scale = 0.5} : (tensor<?x4xf32>, tensor<?x2xf32>, tensor<?x2xf32>) -> tensor<?x4xf32>
    func.return %b : tensor<?x4xf32>
  }
}
