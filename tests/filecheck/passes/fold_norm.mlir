// PASSES: fold-norm

// CHECK-LABEL: func.func @main
builtin.module attributes {mqc.level = "llm", mqc.context = 8 : i64} {
  func.func @main(%ids: tensor<?xi64>, %positions: tensor<?xi64>) -> tensor<?x16xf32> {
    // CHECK: %x = llm.embedding %ids {table = #mqc.weight<"table", "[[TABLE:.+]]", tensor
    %x = llm.embedding %ids {table = #mqc.weight<"table", "0", tensor<16x4xf32>>} : (tensor<?xi64>) -> tensor<?x4xf32>

    /// the gain moves into both users
    // CHECK: %n = llm.rms_norm %x {eps = 1.000000e-05 : f64, groups = 1 : i64}
    // CHECK-NEXT: %q = llm.linear %n {weight = #mqc.weight<"wq", "{{[0-9a-f]+}}", tensor<4x4xf32>>}
    // CHECK-NEXT: %k = llm.linear %n {weight = #mqc.weight<"wk", "{{[0-9a-f]+}}", tensor<4x4xf32>>}
    %n = llm.rms_norm %x {eps = 1.0e-05 : f64, gain = #mqc.weight<"g", "0", tensor<4xf32>>, groups = 1 : i64} : (tensor<?x4xf32>) -> tensor<?x4xf32>
    %q = llm.linear %n {weight = #mqc.weight<"wq", "0", tensor<4x4xf32>>} : (tensor<?x4xf32>) -> tensor<?x4xf32>
    %k = llm.linear %n {weight = #mqc.weight<"wk", "0", tensor<4x4xf32>>} : (tensor<?x4xf32>) -> tensor<?x4xf32>

    /// the bias of a layer norm becomes a bias of its users
    // CHECK: %m = llm.layer_norm %q {eps = 1.000000e-05 : f64, groups = 1 : i64}
    // CHECK-NEXT: %v = llm.linear %m {bias = #mqc.weight<"v.bias", {{.*}} weight = #mqc.weight<"wv"
    %m = llm.layer_norm %q {bias = #mqc.weight<"b", "0", tensor<4xf32>>, eps = 1.0e-05 : f64, gain = #mqc.weight<"h", "0", tensor<4xf32>>, groups = 1 : i64} : (tensor<?x4xf32>) -> tensor<?x4xf32>
    %v = llm.linear %m {weight = #mqc.weight<"wv", "0", tensor<4x4xf32>>} : (tensor<?x4xf32>) -> tensor<?x4xf32>

    /// a matrix with integers of its own stays, and the gain in front of it; so does the norm of a given range
    // CHECK: %e = llm.rms_norm %v {{.*}}gain = #mqc.weight<"e"
    // CHECK-NEXT: %w = llm.linear %e {step_source = "w.scale", weight = #mqc.weight<"w", {{.*}} weight_step = #mqc.weight<"w.step"
    // CHECK-NEXT: %t = llm.rms_norm %w {{.*}}gain = #mqc.weight<"t", {{.*}}given = !quant.uniform<u8:f32, 0.5:128>
    %e = llm.rms_norm %v {eps = 1.0e-05 : f64, gain = #mqc.weight<"e", "0", tensor<4xf32>>, groups = 1 : i64} : (tensor<?x4xf32>) -> tensor<?x4xf32>
    %w = llm.linear %e {step_source = "w.scale", weight = #mqc.weight<"w", "0", tensor<4x4xf32>>, weight_bits = 8 : i64, weight_step = #mqc.weight<"w.step", "0", tensor<4x1xf32>>} : (tensor<?x4xf32>) -> tensor<?x4xf32>
    %t = llm.rms_norm %w {eps = 1.0e-05 : f64, gain = #mqc.weight<"t", "0", tensor<4xf32>>, given = !quant.uniform<u8:f32, 0.5:128>, groups = 1 : i64} : (tensor<?x4xf32>) -> tensor<?x4xf32>
    %z = llm.linear %t {weight = #mqc.weight<"wz", "0", tensor<4x4xf32>>} : (tensor<?x4xf32>) -> tensor<?x4xf32>

    /// a norm that something else than a linear uses keeps its gain
    // CHECK: %r = llm.rms_norm %k {{.*}}gain = #mqc.weight<"r"
    %r = llm.rms_norm %k {eps = 1.0e-05 : f64, gain = #mqc.weight<"r", "0", tensor<4xf32>>, groups = 1 : i64} : (tensor<?x4xf32>) -> tensor<?x4xf32>
    %o = llm.linear %r {weight = #mqc.weight<"wo", "0", tensor<4x4xf32>>} : (tensor<?x4xf32>) -> tensor<?x4xf32>
    %s = llm.add %r, %o : (tensor<?x4xf32>, tensor<?x4xf32>) -> tensor<?x4xf32>
    %u = llm.add %z, %v : (tensor<?x4xf32>, tensor<?x4xf32>) -> tensor<?x4xf32>
    %y = llm.add %s, %u : (tensor<?x4xf32>, tensor<?x4xf32>) -> tensor<?x4xf32>

    /// tied logits: the table stays one, the gain gets a matrix of its own, and a rotation another
    // CHECK: %f = llm.rms_norm %y {eps = 1.000000e-05 : f64, groups = 1 : i64}
    // CHECK-NEXT: %f.gain = llm.linear %f {weight = #mqc.weight<"f.gain.weight", {{.*}} weight_bits = 8
    // CHECK-NEXT: %f.basis = llm.linear %f.gain {weight = #mqc.weight<"f.basis.weight", {{.*}} weight_bits = 8
    // CHECK-NEXT: %l = llm.linear %f.basis {weight = #mqc.weight<"table", "[[TABLE]]"
    %f = llm.rms_norm %y {eps = 1.0e-05 : f64, gain = #mqc.weight<"f", "0", tensor<4xf32>>, groups = 1 : i64} : (tensor<?x4xf32>) -> tensor<?x4xf32>
    %l = llm.linear %f {weight = #mqc.weight<"table", "0", tensor<16x4xf32>>} : (tensor<?x4xf32>) -> tensor<?x16xf32>
    func.return %l : tensor<?x16xf32>
  }
}
