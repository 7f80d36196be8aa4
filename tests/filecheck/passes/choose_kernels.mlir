// PASSES: choose-kernels{backend="cpu"}

// CHECK-LABEL: func.func @main
builtin.module attributes {mqc.level = "int", mqc.context = 8 : i64} {
  func.func @main(%ids: tensor<?xi64>, %positions: tensor<?xi64>) -> tensor<?x16xsi32> {
    /// a table that two ops share is packed once
    // CHECK-NEXT: %x = int.embedding %ids {kernel = "embedding_u16", layout = "n16k4", {{.*}} table = #mqc.weight<"table", "[[PACKED:[0-9a-f]+]]", tensor<1x2x16x4xsi8>>
    %x = int.embedding %ids {multiplier = #mqc.weight<"m", "0", tensor<16xsi32>>, shift = #mqc.weight<"s", "0", tensor<16xsi8>>, table = #mqc.weight<"table", "0", tensor<16x8xsi8>>, zero_point = 32768} : (tensor<?xi64>) -> tensor<?x8xui16>
    /// what makes s32 values runs as part of the requant
    // CHECK-NEXT: %n.acc = int.rms_norm %x {{.*}}fused_into = "int.requant", groups = 1 : i64, kernel = "rms_norm"
    // CHECK-NEXT: %n = int.requant %n.acc {kernel = "norm_u16_u8"
    %n.acc = int.rms_norm %x {epsilon = 80, groups = 1, x_zero = 32768} : (tensor<?x8xui16>) -> tensor<?x8xsi32>
    %n = int.requant %n.acc {multiplier = #mqc.weight<"nm", "0", tensor<1xsi32>>, shift = #mqc.weight<"ns", "0", tensor<1xsi8>>, zero_point = 128} : (tensor<?x8xsi32>) -> tensor<?x8xui8>
    /// 4-bit weights have two values a byte
    // CHECK-NEXT: %q.acc = int.linear {{.*}} layout = "n16k4.s4", row_sums = #mqc.weight<"wq.row_sums", "{{[0-9a-f]+}}", tensor<8xsi32>>, weight = #mqc.weight<"wq", "{{[0-9a-f]+}}", tensor<1x2x32xui8>>
    // CHECK-NEXT: %q = int.requant {{.*}}kernel = "linear_u8_u8"
    %q.acc = int.linear %n {acc_shift = 0, bias = #mqc.weight<"bq", "0", tensor<8xsi32>>, weight = #mqc.weight<"wq", "0", tensor<8x8xsi8>>, weight_bits = 4, x_zero = 128} : (tensor<?x8xui8>) -> tensor<?x8xsi32>
    %q = int.requant %q.acc {multiplier = #mqc.weight<"qm", "0", tensor<8xsi32>>, shift = #mqc.weight<"qs", "0", tensor<8xsi8>>, zero_point = 128} : (tensor<?x8xsi32>) -> tensor<?x8xui8>
    // CHECK-NEXT: %l.acc = int.linear {{.*}} weight = #mqc.weight<"table", "[[PACKED]]"
    // CHECK-NEXT: %l = int.requant {{.*}}kernel = "linear_u8_s32"
    %l.acc = int.linear %q {acc_shift = 0, bias = #mqc.weight<"bl", "0", tensor<16xsi32>>, weight = #mqc.weight<"table", "0", tensor<16x8xsi8>>, weight_bits = 8, x_zero = 128} : (tensor<?x8xui8>) -> tensor<?x16xsi32>
    %l = int.requant %l.acc {multiplier = #mqc.weight<"lm", "0", tensor<16xsi32>>, shift = #mqc.weight<"ls", "0", tensor<16xsi8>>, zero_point = 0} : (tensor<?x16xsi32>) -> tensor<?x16xsi32>
    func.return %l : tensor<?x16xsi32>
  }
}
